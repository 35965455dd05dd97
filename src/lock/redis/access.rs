//! What opens the nodes: addresses, login and certificates. Everything secret about Redis is in these types, which show none of it.

use rustls_native_certs::load_native_certs;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Where a node is: as people see it, and with what its URL says about the login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub display: String,
    /// `redis://` or `unix://`.
    pub url: String,
    pub tls: bool,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display.fmt(f) // the URL may hold a password
    }
}

/// For nodes whose URL does not say it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Login {
    /// `None`: Redis' user `default`.
    pub username: Option<String>,
    pub password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        f.debug_struct("Login").field("username", &self.username).field("password", &password).finish()
    }
}

/// Certificates in PEM, as read from the files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pem {
    /// `None`: what the system trusts.
    pub ca: Option<String>,
    pub client: Option<ClientPem>,
}

/// What this client shows a server that asks who it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPem {
    pub cert: String,
    pub key: String,
}

impl fmt::Debug for ClientPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientPem").finish_non_exhaustive()
    }
}

/// Which part of a [`Pem`] is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Ca,
    Cert,
    Key,
}

/// Never quotes the text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct BadPem {
    pub part: Part,
    pub why: String,
}

fn bad(part: Part, why: impl Into<String>) -> BadPem {
    BadPem { part, why: why.into() }
}

fn certificates(pem: &str, part: Part) -> Result<Vec<CertificateDer<'static>>, BadPem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(bad(part, "holds no certificate in PEM")),
        Err(error) => Err(bad(part, format!("is not PEM: {error}"))),
    }
}

impl Pem {
    /// What a connection with TLS needs; reads the system's certificates where no CA is given, which takes milliseconds.
    ///
    /// # Errors
    /// When a certificate or the key cannot be used.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, BadPem> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            for certificate in certificates(ca, Part::Ca)? {
                roots.add(certificate).map_err(|error| bad(Part::Ca, format!("is of no use: {error}")))?;
            }
        } else {
            // A few old ones that cannot be read are usual.
            roots.add_parsable_certificates(load_native_certs().certs);
            if roots.is_empty() {
                return Err(bad(Part::Ca, "is not given, and this system has no certificates of its own"));
            }
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| bad(Part::Ca, format!("is of no use: {error}")))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(Part::Ca, error.to_string()))?
            .with_webpki_verifier(verifier);
        let Some(ClientPem { cert, key }) = &self.client else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let chain = certificates(cert, Part::Cert)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| {
            bad(Part::Key, format!("holds no private key in PEM without a password: {error}"))
        })?;
        let config = builder.with_client_auth_cert(chain, key);
        config.map(Arc::new).map_err(|error| bad(Part::Key, format!("does not go with cert: {error}")))
    }
}

/// All nodes and what opens them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Access {
    pub nodes: Vec<Address>,
    pub login: Login,
    pub pem: Pem,
}
