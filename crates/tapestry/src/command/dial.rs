//! Reaching the coordinator from a role's home, for what an operator asks and sends by hand.

use crate::command::log;
use crate::files;
use crate::home::Home;
use crate::settings::NodeSettings;
use anyhow::{Context as _, Result};
use tapestry_net::Dialer;
use tapestry_round::node::Node;

/// The coordinator of the node in `home`, or the coordinator in `home` itself.
pub(crate) async fn coordinator(home: &Home) -> Result<Dialer> {
    let key = home.key()?;
    if home.path("node.toml").exists() {
        let dialer = NodeSettings::read(home)?.dialer(&key)?;
        let dialer = dialer.context("this node has not joined: tapestry node join URL")?;
        let state = log::fold::<Node>(home, log::founder(home, None).await?).await?;
        for (key, address) in state.coordinator_addresses() {
            dialer.add_server(address, *key)?;
        }
        if let Some(holder) = state.coordinator() {
            dialer.prefer(holder);
        }
        return Ok(dialer);
    }
    let address = files::read_text(&home.path("address")).context("this coordinator has never run")?;
    Ok(Dialer::new(&address.trim().replace("0.0.0.0:", "127.0.0.1:"), key.public(), &key)?)
}
