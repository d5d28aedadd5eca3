//! Who asks a registry.
//!
//! Secrets are never shown: `Debug` hides them, errors name only the registry. They come with each request: the store
//! reads nobody's configuration and asks no helper, which is the client's business.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::error::Error;

/// What to show to a registry.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// User name and password (or an access token used as one).
    Basic {
        /// Name.
        username: String,
        /// Secret.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for access tokens at the registry's token server.
    IdentityToken(String),
    /// An access token, sent as it is.
    RegistryToken(String),
}

impl Credentials {
    /// From the value of an `X-Registry-Auth` header; an empty one is anonymous.
    ///
    /// Source: Docker Engine API, "Authentication".
    ///
    /// # Errors
    /// [`Error::Credentials`] if it is not base64url of JSON.
    pub fn from_header(value: &str) -> Result<Self, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Header {
            username: String,
            password: String,
            auth: String,
            identitytoken: String,
            registrytoken: String,
        }
        let malformed = |reason: &str| Error::Credentials {
            registry: "the X-Registry-Auth header".to_owned(),
            reason: reason.to_owned(),
        };
        let value = value.trim();
        if value.is_empty() {
            return Ok(Self::default());
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(value.trim_end_matches('='))
            .or_else(|_| STANDARD.decode(value))
            .or_else(|_| URL_SAFE.decode(value))
            .map_err(|_| malformed("it is not base64url"))?;
        // Docker treats `null` as anonymous too.
        let header: Option<Header> = serde_json::from_slice(&bytes)
            .map_err(|_| malformed("it is not the JSON of credentials"))?;
        let header = header.unwrap_or_default();
        Ok(if !header.registrytoken.is_empty() {
            Self::RegistryToken(header.registrytoken)
        } else if !header.identitytoken.is_empty() {
            Self::IdentityToken(header.identitytoken)
        } else if !header.username.is_empty() {
            Self::Basic { username: header.username, password: header.password }
        } else if !header.auth.is_empty() {
            basic(&header.auth)
                .ok_or_else(|| malformed("its `auth` is not base64 of user:password"))?
        } else {
            Self::Anonymous
        })
    }
}

/// From the `auth` field: base64 of `user:password`.
fn basic(auth: &str) -> Option<Credentials> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credentials::Basic {
        username: username.to_owned(),
        // Docker writes a trailing NUL on some platforms.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => write!(f, "Basic({username}, …)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(…)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(…)"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn header(json: &str) -> Credentials {
        Credentials::from_header(&URL_SAFE.encode(json)).unwrap()
    }

    #[test]
    fn headers() {
        assert_eq!(header("{}"), Credentials::default());
        assert_eq!(header("null"), Credentials::default());
        assert_eq!(Credentials::from_header("").unwrap(), Credentials::default());
        let basic = Credentials::Basic { username: "u".into(), password: "p:q".into() };
        assert_eq!(header(r#"{"username":"u","password":"p:q","serveraddress":"x"}"#), basic);
        assert_eq!(header(&format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("u:p:q"))), basic);
        assert_eq!(
            header(r#"{"identitytoken":"t","username":"u"}"#),
            Credentials::IdentityToken("t".into())
        );
        assert!(Credentials::from_header("%%%").is_err());
        assert!(Credentials::from_header(&URL_SAFE.encode("[1")).is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let auth = header(r#"{"username":"u","password":"hunter2"}"#);
        assert!(!format!("{auth:?}").contains("hunter2"));
        let token = Credentials::IdentityToken("hunter2".into());
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}
