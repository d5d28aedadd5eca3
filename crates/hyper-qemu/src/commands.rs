//! QMP commands with arguments and answers as narrow as they are used here: the full schema of
//! one QEMU version does not parse what another says.

use qapi::qmp::QmpCommand;
use serde::{Deserialize, Serialize};
use serde_json::Value;

macro_rules! command {
    ($(#[$doc:meta])* $type:ident($name:literal) -> $ok:ty) => {
        $(#[$doc])*
        impl qapi::Command for $type {
            type Ok = $ok;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }
        impl QmpCommand for $type {}
    };
}

/// Adds a block node.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Value);
command!(BlockdevAdd("blockdev-add") -> Value);

/// Changes the options of block nodes, the file below one among them.
#[derive(Debug, Serialize)]
pub struct BlockdevReopen {
    pub options: Vec<Value>,
}
command!(BlockdevReopen("blockdev-reopen") -> Value);

/// Removes a block node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    pub node_name: String,
}
command!(BlockdevDel("blockdev-del") -> Value);

/// Puts the descriptor that comes with it into a set.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddFd {
    pub fdset_id: u32,
}
command!(AddFd("add-fd") -> Value);

/// Names the descriptor that comes with it, for one migration.
#[derive(Debug, Serialize)]
pub struct GetFd {
    pub fdname: &'static str,
}
command!(GetFd("getfd") -> Value);

/// Bytes a second that a migration may take.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SetMigration {
    pub max_bandwidth: u64,
}
command!(SetMigration("migrate-set-parameters") -> Value);

/// Begins to write the guest.
#[derive(Debug, Serialize)]
pub struct Migrate {
    pub uri: &'static str,
}
command!(Migrate("migrate") -> Value);

/// How writing or reading a guest goes.
#[derive(Debug, Serialize)]
pub struct QueryMigrate {}
command!(QueryMigrate("query-migrate") -> Migration);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Migration {
    pub status: Option<String>,
    pub error_desc: Option<String>,
}

/// Closes a set.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoveFd {
    pub fdset_id: u32,
}
command!(RemoveFd("remove-fd") -> Value);

/// Lists the descriptor sets.
#[derive(Debug, Serialize)]
pub struct QueryFdsets {}
command!(QueryFdsets("query-fdsets") -> Vec<Fdset>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fdset {
    pub fdset_id: u32,
}

/// Lists the block nodes.
#[derive(Debug, Serialize)]
pub struct QueryNodes {
    pub flat: bool,
}
command!(QueryNodes("query-named-block-nodes") -> Vec<Inserted>);

/// A block node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inserted {
    pub node_name: Option<String>,
    pub image: Image,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    pub virtual_size: u64,
}
