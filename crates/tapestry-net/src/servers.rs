//! The servers of a dialler: one or several that stand for the same role, one of which is asked at a time.

use crate::NetError;
use crate::identity::client_config;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tapestry_core::{PublicKey, SecretKey};
use tokio_rustls::TlsConnector;

/// One server: where it is, and the key that it must prove.
pub(crate) struct ServerAddress {
    pub(crate) address: String,
    pub(crate) expected: PublicKey,
    pub(crate) connector: TlsConnector,
}

/// All of them. Clones of a dialler share this.
pub(crate) struct Servers {
    key: SecretKey,
    known: RwLock<Vec<Arc<ServerAddress>>>,
    current: AtomicUsize,
}

impl Servers {
    pub(crate) fn new(address: &str, expected: PublicKey, key: &SecretKey) -> Result<Self, NetError> {
        let servers = Self { key: key.clone(), known: RwLock::default(), current: AtomicUsize::new(0) };
        servers.add(address, expected)?;
        Ok(servers)
    }

    /// Which server is asked now, and its number.
    pub(crate) fn current(&self) -> (usize, Arc<ServerAddress>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let number = self.current.load(Ordering::Relaxed) % known.len();
        (number, Arc::clone(&known[number]))
    }

    /// Adds a server, or notes that one is elsewhere than was known.
    pub(crate) fn add(&self, address: &str, expected: PublicKey) -> Result<(), NetError> {
        let port =
            address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
        if port.is_none_or(|port: u16| port == 0) {
            return Err(NetError::Address { address: address.to_owned() });
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let same = known.iter().position(|server| server.expected == expected);
        if same.is_some_and(|number| known[number].address == address) {
            return Ok(());
        }
        let connector = TlsConnector::from(Arc::new(client_config(&self.key, expected)?));
        let server = Arc::new(ServerAddress { address: address.to_owned(), expected, connector });
        match same {
            Some(number) => known[number] = server,
            None => known.push(server),
        }
        Ok(())
    }

    pub(crate) fn num(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Asks the one with this key from now on, if it is known.
    pub(crate) fn prefer(&self, key: PublicKey) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.iter().position(|server| server.expected == key) {
            self.current.store(number, Ordering::Relaxed);
        }
    }

    /// Asks another than `failed` from now on, unless that is so already: several requests may have failed on it at once.
    pub(crate) fn leave(&self, failed: usize) {
        let num = self.num();
        let _ = self.current.compare_exchange(failed, (failed + 1) % num, Ordering::Relaxed, Ordering::Relaxed);
    }
}
