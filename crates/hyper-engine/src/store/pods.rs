//! The pods' table.

use rusqlite::params;

use super::{Change, Store, json};
use crate::Result;
use crate::pod::spec::{PodSpec, PodState};

pub(super) const TABLE: &str = "
    CREATE TABLE pod (
        id    TEXT PRIMARY KEY,
        name  TEXT NOT NULL UNIQUE,
        spec  TEXT NOT NULL,
        state TEXT NOT NULL
    ) WITHOUT ROWID;
";
const SET_STATE: &str = "UPDATE pod SET state = ?2 WHERE id = ?1";
const SET_SPEC: &str = "UPDATE pod SET spec = ?2 WHERE id = ?1";
const DELETE: &str = "DELETE FROM pod WHERE id = ?1";

/// A pod as stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodRecord {
    pub name: String,
    pub spec: PodSpec,
    pub state: PodState,
}

impl Store {
    /// All pods, in no order.
    pub async fn pods(&self) -> Result<Vec<PodRecord>> {
        self.call(|connection| {
            let mut statement = connection.prepare("SELECT name, spec, state FROM pod")?;
            let rows = statement.query_map([], |row| {
                Ok(PodRecord { name: row.get(0)?, spec: json(row, 1)?, state: json(row, 2)? })
            })?;
            rows.collect()
        })
        .await
    }

    pub async fn insert_pod(&self, record: &PodRecord) -> Result<()> {
        let (id, name) = (record.spec.id.clone(), record.name.clone());
        let (spec, state) = (self.encode(&record.spec)?, self.encode(&record.state)?);
        self.call(move |connection| {
            connection
                .prepare_cached("INSERT INTO pod VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id, name, spec, state])
                .map(drop)
        })
        .await
    }

    pub async fn set_pod_state(&self, id: &str, state: &PodState) -> Result<()> {
        let value = Some(self.encode(state)?);
        let change = Change { sql: SET_STATE, id: id.to_owned(), value };
        self.desk(|desk| desk.change(change)).await
    }

    pub async fn set_pod_spec(&self, spec: &PodSpec) -> Result<()> {
        let change = Change { sql: SET_SPEC, id: spec.id.clone(), value: Some(self.encode(spec)?) };
        self.desk(|desk| desk.change(change)).await
    }

    pub async fn delete_pod(&self, id: &str) -> Result<()> {
        let change = Change { sql: DELETE, id: id.to_owned(), value: None };
        self.desk(|desk| desk.change(change)).await
    }
}
