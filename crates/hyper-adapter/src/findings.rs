//! What a look at the host found, for `hyper doctor`.

use hyper_hypervisor::{Finding, Probe};

/// Findings so far, and whether something is lacking.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Finding>,
    lacking: bool,
}

impl Findings {
    /// Adds what guests cannot do without.
    pub fn required(&mut self, what: &str, ok: bool, detail: impl Into<String>) {
        self.lacking |= !ok;
        self.optional(what, ok, detail);
    }

    /// Adds what guests can do without.
    pub fn optional(&mut self, what: &str, ok: bool, detail: impl Into<String>) {
        self.found.push(Finding { what: what.to_owned(), ok, detail: detail.into() });
    }

    /// Adds what jails need.
    pub async fn jail(&mut self) {
        match tokio::task::spawn_blocking(hyper_jail::probe).await {
            Ok(jail) => {
                for finding in jail {
                    self.lacking |= finding.required && !finding.ok;
                    self.optional(&finding.what, finding.ok, finding.detail);
                }
            }
            Err(error) => self.required("jail", false, error.to_string()),
        }
    }

    /// The end of the look; `version` is the hypervisor's.
    pub fn probe(self, version: Option<String>) -> Probe {
        Probe { usable: !self.lacking, version, findings: self.found }
    }
}
