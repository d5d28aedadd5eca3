//! Networks and endpoints in the database. An address is in a network once: the table says so.

use rusqlite::params;

use super::{Store, json};
use crate::Result;
use crate::network::spec::{Endpoint, Network};

/// The step that brought networks.
pub(super) const TABLES: &str = "
    CREATE TABLE network (
        id    TEXT PRIMARY KEY,
        name  TEXT NOT NULL UNIQUE,
        value TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE endpoint (
        id      TEXT PRIMARY KEY,
        network TEXT NOT NULL,
        ipv4    TEXT,
        ipv6    TEXT,
        value   TEXT NOT NULL,
        UNIQUE (network, ipv4),
        UNIQUE (network, ipv6)
    ) WITHOUT ROWID;
";

impl Store {
    pub async fn networks(&self) -> Result<Vec<Network>> {
        self.call(|connection| {
            let mut statement = connection.prepare("SELECT value FROM network")?;
            let rows = statement.query_map([], |row| json(row, 0))?;
            rows.collect()
        })
        .await
    }

    pub async fn put_network(&self, network: &Network) -> Result<()> {
        let (id, name, value) = (network.id.clone(), network.name.clone(), self.encode(network)?);
        self.call(move |connection| {
            connection
                .execute("INSERT OR REPLACE INTO network VALUES (?1, ?2, ?3)", [id, name, value])
                .map(drop)
        })
        .await
    }

    pub async fn delete_network(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.call(move |connection| {
            connection.execute("DELETE FROM network WHERE id = ?1", [id]).map(drop)
        })
        .await
    }

    pub async fn endpoints(&self) -> Result<Vec<Endpoint>> {
        self.call(|connection| {
            let mut statement = connection.prepare("SELECT value FROM endpoint")?;
            let rows = statement.query_map([], |row| json(row, 0))?;
            rows.collect()
        })
        .await
    }

    /// Puts a new endpoint, or the new value of one.
    pub async fn put_endpoint(&self, endpoint: &Endpoint) -> Result<()> {
        let (id, network) = (endpoint.id.clone(), endpoint.network.clone());
        let ip = |ipv6| endpoint.address(ipv6).map(|net| net.addr().to_string());
        let (ipv4, ipv6, value) = (ip(false), ip(true), self.encode(endpoint)?);
        self.call(move |connection| {
            let sql = "INSERT INTO endpoint VALUES (?1, ?2, ?3, ?4, ?5)
                       ON CONFLICT (id) DO UPDATE SET value = ?5";
            let mut statement = connection.prepare_cached(sql)?;
            statement.execute(params![id, network, ipv4, ipv6, value]).map(drop)
        })
        .await
    }

    pub async fn delete_endpoint(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.call(move |connection| {
            connection.execute("DELETE FROM endpoint WHERE id = ?1", [id]).map(drop)
        })
        .await
    }
}
