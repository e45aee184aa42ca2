//! Buckets: any store that speaks the S3 protocol and creates objects conditionally.

use crate::StoreError;
use crate::http::Connector;
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a bucket's server knows its user by.
#[derive(Clone)]
pub struct S3Credentials {
    /// The name of the key.
    pub access_key: String,
    /// The key, by which requests are signed. It is never sent.
    pub secret_key: String,
    /// Where the key is a temporary one.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl S3Credentials {
    /// From `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    ///
    /// # Errors
    /// The name of the variable that is not there.
    pub fn from_env() -> Result<Self, &'static str> {
        let variable = |name: &'static str| std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or(name);
        Ok(Self {
            access_key: variable("AWS_ACCESS_KEY_ID")?,
            secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN").ok(),
        })
    }
}

/// A bucket, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// Its name.
    pub bucket: String,
    /// What every object's name begins with, without a slash at the end; may be empty.
    pub prefix: String,
    /// The server, `https://HOST[:PORT]`; Amazon's for the region where there is none.
    pub endpoint: Option<String>,
    /// The region; many servers do not care.
    pub region: String,
    /// Whether the endpoint may be plain HTTP although it is on another machine.
    pub allow_http: bool,
    /// When nothing has come for so long, a request is given up and tried again.
    pub idle: Duration,
}

impl S3Settings {
    /// What messages call the place.
    #[must_use]
    pub fn place(&self) -> String {
        let server = self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        format!("s3://{}/{}{server}", self.bucket, self.prefix)
    }

    /// Opens the bucket and makes sure that it is there, can be written, and creates an object for one of two only: a log needs
    /// that.
    ///
    /// # Errors
    /// [`StoreError::Unusable`], with what to look at.
    pub async fn open(
        &self,
        credentials: Result<S3Credentials, &'static str>,
    ) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let absent = |name| self.unusable(format!("{name} is not in the environment of this process"));
        let S3Credentials { access_key, secret_key, session_token } = credentials.map_err(absent)?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(&self.region)
            .with_access_key_id(access_key)
            .with_secret_access_key(secret_key)
            .with_http_connector(Connector { idle: self.idle });
        if let Some(token) = session_token {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = &self.endpoint {
            self.check_endpoint(endpoint)?;
            builder = builder.with_endpoint(endpoint).with_allow_http(true);
        }
        let store = builder.build().map_err(|error| self.unusable(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = match self.prefix.as_str() {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        self.probe(&*store).await?;
        Ok(store)
    }

    fn check_endpoint(&self, endpoint: &str) -> Result<(), StoreError> {
        // `http://127.0.0.1:80@elsewhere` is elsewhere; and a password would be in every message.
        if endpoint.contains('@') {
            return Err(self.unusable_server("an endpoint names no user; credentials are in the environment".into()));
        }
        if endpoint.starts_with("https://") {
            return Ok(());
        }
        let Some(rest) = endpoint.strip_prefix("http://") else {
            return Err(self.unusable("an endpoint is https://HOST or https://HOST:PORT".into()));
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let is_here = matches!(host, "localhost" | "[::1]")
            || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        if is_here || self.allow_http {
            return Ok(());
        }
        Err(self.unusable(
            "its endpoint is plain HTTP: whoever is in between sees all weights and can sign requests of its own. Use https://, \
             or allow it with `store.allow_http = true`"
                .into(),
        ))
    }

    /// Tries what a log depends on.
    async fn probe(&self, store: &dyn ObjectStore) -> Result<(), StoreError> {
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        // A log takes a name with a leading dot for nobody's entry: another process may look there meanwhile, and the probe stays
        // where this one is killed or the key may not delete.
        let path = ObjectPath::from(format!(".probe-{}-{nanos}", std::process::id()));
        let create = async || {
            let content = PutPayload::from(Bytes::from(nanos.to_string()));
            store.put_opts(&path, content, PutOptions::from(PutMode::Create)).await
        };
        // A log is listed, too.
        if let Some(Err(error)) = store.list(None).next().await {
            return Err(self.unusable(format!("what is there cannot be listed: {}", advice(&error))));
        }
        let first = create().await;
        first.map_err(|error| self.unusable(format!("nothing can be written there: {}", advice(&error))))?;
        let second = create().await;
        // It may stay: it is small, and nobody looks at it.
        let _ = store.delete(&path).await;
        match second {
            Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(self.unusable(format!("it does not answer as it should: {}", advice(&error)))),
            Ok(_) => Err(self.unusable(
                "it lets two writers create one object (it ignores `If-None-Match: *`), so that two coordinators could write one log. \
                 Use a store that has conditional writes"
                    .into(),
            )),
        }
    }

    /// As [`Self::unusable`], without the endpoint.
    fn unusable_server(&self, reason: String) -> StoreError {
        StoreError::Unusable { place: format!("s3://{}/{}", self.bucket, self.prefix), reason }
    }

    fn unusable(&self, reason: String) -> StoreError {
        StoreError::Unusable { place: self.place(), reason }
    }
}

/// What an operator looks at first. Some of the client's errors say it in words only.
fn advice(error: &object_store::Error) -> String {
    let told = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| told.contains(word));
    let hint = if says(&["403 Forbidden", "401 Unauthorized"])
        || matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
    {
        "the server does not accept the access key, or does not let it do that there; look at the two AWS_... variables, at the \
         bucket's policy, and at this machine's clock"
    } else if says(&["NoSuchBucket"]) || matches!(error, object_store::Error::NotFound { .. }) {
        "there is no such bucket at that endpoint"
    } else {
        "look at the endpoint, and whether it can be reached from here"
    };
    format!("{hint}. It said: {told}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_alone_unless_it_is_allowed() {
        let settings = |endpoint: &str, allow_http| S3Settings {
            bucket: "b".into(),
            prefix: "p".into(),
            endpoint: Some(endpoint.into()),
            region: "us-east-1".into(),
            allow_http,
            idle: Duration::from_secs(1),
        };
        let check = |endpoint: &str, allow_http| settings(endpoint, allow_http).check_endpoint(endpoint).is_ok();
        for here in ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000", "https://s3.example.org"] {
            assert!(check(here, false), "{here}");
        }
        for there in [
            "http://s3.example.org",
            "http://127.evil.example",
            "s3.example.org",
            "ftp://a",
            "http://10.0.0.1:9000/x",
            "http://127.0.0.1:9000@evil.example",
        ] {
            assert!(!check(there, false), "{there}");
        }
        assert!(check("http://s3.example.org", true));
        let named = "https://user:password@s3.example.org";
        let error = settings(named, true).check_endpoint(named).expect_err("a user").to_string();
        assert!(!error.contains("password") && error.contains("environment"), "{error}");
    }
}
