//! Reading requests: bodies, query values, filters, times.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use hyper_image::Reference;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// Longest JSON body: a create request with a seccomp profile stays far below it.
const MAX_BODY: usize = 4 << 20;

/// The version that the client asked for in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub u32, pub u32);

impl Version {
    /// What `text` says; `None` if it is no version.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl<S: Sync> FromRequestParts<S> for Version {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let newest = || Self::parse(crate::API_VERSION).unwrap_or(Self(1, 47));
        Ok(parts.extensions.get::<Self>().copied().unwrap_or_else(newest))
    }
}

/// The query, by key; of several values the last counts where one is wanted.
#[derive(Debug, Default)]
pub(crate) struct Query(BTreeMap<String, Vec<String>>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|e| ApiError::invalid(e.body_text()))?;
        let mut query = Self::default();
        for (key, value) in pairs.0 {
            query.0.entry(key).or_default().push(value);
        }
        Ok(query)
    }
}

impl Query {
    /// `None` for absent and empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.last(key).filter(|text| !text.is_empty())
    }

    /// `repo` and `tag` as the name of something new; `None` without `repo`.
    pub fn new_name(&self) -> ApiResult<Option<Reference>> {
        let Some(repository) = self.text("repo") else { return Ok(None) };
        let text = match self.text("tag") {
            Some(tag) => format!("{repository}:{tag}"),
            None => repository.to_owned(),
        };
        let reference: Reference = text
            .parse()
            .map_err(|e| ApiError::invalid(format!("invalid reference format `{text}`: {e}")))?;
        if reference.digest().is_some() {
            let why = "a digest is not a name to give: use NAME[:TAG]";
            return Err(ApiError::invalid(format!("invalid name `{text}`: {why}")));
        }
        Ok(Some(reference.or_latest()))
    }

    /// All values of a key, in order.
    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    fn last(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.last().map(String::as_str)
    }

    /// Docker's idea of a boolean.
    pub fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        match self.last(key) {
            None => default,
            Some(text) => !matches!(
                text.trim().to_ascii_lowercase().as_str(),
                "" | "0" | "no" | "false" | "none"
            ),
        }
    }

    pub fn number(&self, key: &str) -> ApiResult<Option<i64>> {
        self.text(key)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::invalid(format!("invalid {key} `{text}`: not a number")))
            })
            .transpose()
    }

    /// `SECONDS[.NANOSECONDS]` or RFC 3339, as nanoseconds since the Unix epoch; 0 is absent.
    pub fn time(&self, key: &str) -> ApiResult<Option<i64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match time(text) {
            Some(0) => Ok(None),
            Some(unix_ns) => Ok(Some(unix_ns)),
            None => Err(ApiError::invalid(format!("invalid {key} `{text}`: not a time"))),
        }
    }

    pub fn filters(&self, known: &[&str]) -> ApiResult<Filters> {
        self.text("filters")
            .map_or_else(|| Ok(Filters::default()), |text| Filters::parse(text, known))
    }
}

/// A time as Docker's clients write it, as nanoseconds since the Unix epoch.
pub(crate) fn time(text: &str) -> Option<i64> {
    if text.contains('T') {
        return hyper_stdio::parse_rfc3339(text);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// A time, or an age (`24h`, `1h30m`) as the time that was so long before `now`.
pub(crate) fn age_or_time(text: &str, now: i64) -> Option<i64> {
    if let Some(time) = time(text) {
        return Some(time);
    }
    let mut nanoseconds: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..end].parse().ok()?;
        let unit = &rest[end..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        let factor: i64 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        nanoseconds = nanoseconds.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[end + unit.len()..];
    }
    now.checked_sub(nanoseconds).filter(|_| !text.is_empty())
}

/// Filters: `{"key":{"value":true}}`, and `{"key":["value"]}` of old clients.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Refuses keys that are not among `known`.
    pub fn parse(text: &str, known: &[&str]) -> ApiResult<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Values {
            Map(BTreeMap<String, bool>),
            List(Vec<String>),
        }
        let bad = |why: String| ApiError::invalid(format!("invalid filters: {why}"));
        let parsed: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let mut filters = BTreeMap::new();
        for (key, values) in parsed {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'")));
            }
            let values = match values {
                Values::Map(map) => {
                    map.into_iter().filter(|(_, wanted)| *wanted).map(|(value, _)| value).collect()
                }
                Values::List(list) => list,
            };
            filters.insert(key, values);
        }
        Ok(Self(filters))
    }

    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn has(&self, key: &str) -> bool {
        !self.values(key).is_empty()
    }

    /// No such filter, or one of its values passes.
    pub fn any(&self, key: &str, passes: impl FnMut(&String) -> bool) -> bool {
        !self.has(key) || self.values(key).iter().any(passes)
    }

    /// Every `label` filter (`key` or `key=value`) holds, and no `label!` does.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|has| has == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").iter().all(holds) && !self.values("label!").iter().any(holds)
    }

    /// The one boolean value of a filter.
    pub fn boolean(&self, key: &str) -> ApiResult<Option<bool>> {
        match self.values(key) {
            [] => Ok(None),
            [one] => match one.as_str() {
                "1" | "true" => Ok(Some(true)),
                "0" | "false" => Ok(Some(false)),
                other => Err(ApiError::invalid(format!("invalid filter '{key}={other}'"))),
            },
            _ => Err(ApiError::invalid(format!("invalid filter '{key}': several values"))),
        }
    }
}

/// A JSON body. An empty one is an error that says so; others name the position.
pub(crate) async fn json<T: DeserializeOwned>(body: Body) -> ApiResult<T> {
    match json_or_none(body).await? {
        Some(value) => Ok(value),
        None => Err(ApiError::invalid("invalid JSON: the request has no body")),
    }
}

/// A JSON body that is read as two things, each of which knows fields that the other does not.
pub(crate) async fn both<A: DeserializeOwned, B: DeserializeOwned>(
    body: Body,
) -> ApiResult<(A, B)> {
    let bytes = bytes(body).await?;
    match parsed(&bytes)? {
        Some(first) => Ok((first, serde_json::from_slice(&bytes).map_err(|e| invalid_json(&e))?)),
        None => Err(ApiError::invalid("invalid JSON: the request has no body")),
    }
}

/// As [`json`], for requests whose body may be absent.
pub(crate) async fn json_or_none<T: DeserializeOwned>(body: Body) -> ApiResult<Option<T>> {
    parsed(&bytes(body).await?)
}

async fn bytes(body: Body) -> ApiResult<axum::body::Bytes> {
    axum::body::to_bytes(body, MAX_BODY)
        .await
        .map_err(|e| ApiError::invalid(format!("cannot read the request's body: {e}")))
}

fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<Option<T>> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // Syntax first: an error of the type then never hides a missing brace.
    let value: Value = serde_json::from_slice(bytes).map_err(|e| invalid_json(&e))?;
    drop(value);
    serde_json::from_slice(bytes).map(Some).map_err(|e| invalid_json(&e))
}

fn invalid_json(error: &serde_json::Error) -> ApiError {
    ApiError::invalid(format!("invalid JSON: {error}"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn filters_of_new_and_old_clients() {
        let known = ["name", "label"];
        let new = Filters::parse(r#"{"name":{"a":true,"b":false}}"#, &known).unwrap();
        assert_eq!(new.values("name"), ["a"]);
        let old = Filters::parse(r#"{"name":["a","b"]}"#, &known).unwrap();
        assert_eq!(old.values("name"), ["a", "b"]);
        assert!(Filters::parse(r#"{"nope":["a"]}"#, &known).unwrap_err().message.contains("nope"));
        assert!(Filters::parse("{", &known).is_err());
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let filter = |text| Filters::parse(text, &known).unwrap();
        assert!(filter(r#"{"label":["a"]}"#).labels(&labels));
        assert!(filter(r#"{"label":["a=1"]}"#).labels(&labels));
        assert!(!filter(r#"{"label":["a=1","b"]}"#).labels(&labels));
    }

    #[test]
    fn times() {
        assert_eq!(time("12"), Some(12_000_000_000));
        assert_eq!(time("12.5"), Some(12_500_000_000));
        assert_eq!(time("12.000000001"), Some(12_000_000_001));
        assert_eq!(time("1970-01-01T00:00:01Z"), Some(1_000_000_000));
        for bad in ["x", "1.x", "1.1234567890", ""] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn ages() {
        let hour = 3_600_000_000_000;
        assert_eq!(age_or_time("1h30m", 10 * hour), Some(8 * hour + hour / 2));
        assert_eq!(age_or_time("12", 0), Some(12_000_000_000));
        for bad in ["", "h", "1y", "1h2"] {
            assert_eq!(age_or_time(bad, 0), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn broken_json_names_its_position() {
        let error = json::<Value>(Body::from("{\"a\": 1,}")).await.unwrap_err();
        assert!(error.message.contains("line 1 column 9"), "{}", error.message);
        assert!(json::<Value>(Body::empty()).await.is_err());
        let typed = json::<BTreeMap<String, u8>>(Body::from("{\"a\": \"x\"}")).await.unwrap_err();
        assert!(typed.message.contains("column"), "{}", typed.message);
    }
}
