//! The engine's state on disk: one SQLite database, on a thread of its own.
//!
//! Every change is one transaction. The journal is a write-ahead log with `synchronous=NORMAL`:
//! a commit is one `write` (no fsync), so it survives `kill -9` of hyperd; after a power cut the
//! last commits may be missing, the database is never torn. The schema's version is SQLite's
//! `user_version`; [`MIGRATIONS`] go up one by one, a newer database is refused.
//!
//! States and removals that do not fit on a full disk are kept and written as soon as they fit:
//! what has happened to a pod has happened, whatever the disk says.
//!
//! Only this module knows SQL. Calls are queued in order; dropping the future of one does not undo
//! it. The thread ends when the last [`Store`] is dropped.

mod network;
mod pods;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;

use crate::container::spec::Spec;
use crate::container::state::State;
use crate::event::{Event, RING};
use crate::volume::Volume;
use crate::{Error, Result};

pub(crate) use pods::PodRecord;

/// One statement list per version, oldest first.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE container (
        id    TEXT PRIMARY KEY,
        name  TEXT NOT NULL UNIQUE,
        spec  TEXT NOT NULL,
        state TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
",
    "
    CREATE TABLE event (number INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL);
",
    "
    CREATE TABLE volume (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
",
    network::TABLES,
    pods::TABLE,
];

/// A container as stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub name: String,
    pub spec: Spec,
    pub state: State,
}

type Job = Box<dyn FnOnce(&mut Desk) + Send>;

/// The thread's own: the database, and what could not be written to it yet, oldest first.
struct Desk {
    connection: Connection,
    late: Vec<Change>,
}

/// A statement with an id, and a value where it takes one.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    sql: &'static str,
    id: String,
    value: Option<String>,
}

const SET_STATE: &str = "UPDATE container SET state = ?2 WHERE id = ?1";
const DELETE: &str = "DELETE FROM container WHERE id = ?1";
const DELETE_VOLUME: &str = "DELETE FROM volume WHERE name = ?1";
/// How often a late change is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Desk {
    /// Serves until the last handle is gone.
    fn serve(mut self, jobs: &mpsc::Receiver<Job>) {
        loop {
            let job = if self.late.is_empty() {
                jobs.recv().map_err(mpsc::RecvTimeoutError::from)
            } else {
                jobs.recv_timeout(AGAIN)
            };
            // Order matters: a row may be waiting to be deleted before its name is used again.
            self.catch_up();
            match job {
                Ok(job) => job(&mut self),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Makes the change now, or keeps it when the disk is full.
    fn change(&mut self, change: Change) -> rusqlite::Result<()> {
        match apply(&self.connection, &change) {
            Err(error) if is_full(&error) => {
                tracing::error!(container = change.id, %error, "kept until there is room");
                self.late.retain(|late| late.id != change.id);
                self.late.push(change);
                Ok(())
            }
            done => done,
        }
    }

    fn catch_up(&mut self) {
        while let Some(change) = self.late.first() {
            match apply(&self.connection, change) {
                Err(error) if is_full(&error) => return,
                Err(error) => {
                    tracing::error!(container = change.id, %error, "a late change is given up");
                }
                Ok(()) => tracing::info!(container = change.id, "a late change is written"),
            }
            self.late.remove(0);
        }
    }
}

fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(change.sql)?;
    let changed = match &change.value {
        Some(value) => statement.execute([&change.id, value])?,
        None => statement.execute([&change.id])?,
    };
    match (changed, &change.value) {
        (0, Some(_)) => Err(rusqlite::Error::QueryReturnedNoRows),
        _ => Ok(()),
    }
}

/// No room for the journal, or for the database itself.
fn is_full(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure))
}

/// A handle; clones share the thread.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    queue: mpsc::SyncSender<Job>,
    path: PathBuf,
}

/// Requests that may wait for the thread; further callers block the queue's sender, which a
/// few dozen microseconds per commit make unreachable in practice.
const QUEUE: usize = 1024;

impl Store {
    /// Opens or makes the database and brings its schema up to date. Blocks.
    pub fn open(path: &Path) -> Result<Self> {
        let broken = |why: String| Error::Database { path: path.to_owned(), why };
        let mut connection = Connection::open(path).map_err(|e| broken(e.to_string()))?;
        prepare(&mut connection).map_err(broken)?;
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("state-db".to_owned())
            .spawn(move || Desk { connection, late: Vec::new() }.serve(&jobs))
            .map_err(|e| broken(e.to_string()))?;
        Ok(Self { queue, path: path.to_owned() })
    }

    /// A random id of this data root, the same for its whole life.
    pub async fn engine_id(&self) -> Result<String> {
        self.call(|connection| {
            let known: Option<String> = connection
                .query_row("SELECT value FROM meta WHERE key = 'engine'", [], |row| row.get(0))
                .optional()?;
            if let Some(id) = known {
                return Ok(id);
            }
            let id = uuid::Uuid::new_v4().to_string();
            connection.execute("INSERT INTO meta VALUES ('engine', ?1)", [&id])?;
            Ok(id)
        })
        .await
    }

    /// Whether the host was started since this was last asked; remembers `boot`, its id.
    pub async fn rebooted(&self, boot: String) -> Result<bool> {
        self.call(move |connection| {
            let known: Option<String> = connection
                .query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| row.get(0))
                .optional()?;
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?1)", [&boot])?;
            Ok(known.is_some_and(|known| known != boot))
        })
        .await
    }

    /// The last events, oldest first.
    pub async fn events(&self) -> Result<Vec<Event>> {
        self.call(|connection| {
            let mut statement = connection.prepare("SELECT event FROM event ORDER BY number")?;
            let rows = statement.query_map([], |row| json(row, 0))?;
            // One that this version does not know is no reason not to start.
            let mut events: Vec<Event> = rows.filter_map(std::result::Result::ok).collect();
            events.drain(..events.len().saturating_sub(RING));
            Ok(events)
        })
        .await
    }

    /// Keeps one more event, and not much more than the last [`RING`]. Does not wait.
    pub fn keep_event(&self, event: &Event) {
        let Ok(text) = serde_json::to_string(event) else { return };
        let job: Job = Box::new(move |desk| {
            let connection = &desk.connection;
            let kept = connection
                .prepare_cached("INSERT INTO event (event) VALUES (?1)")
                .and_then(|mut statement| statement.insert([&text]));
            let pruned = kept.and_then(|number| match number % 64 {
                0 => connection
                    .prepare_cached("DELETE FROM event WHERE number <= ?1")?
                    .execute([number.saturating_sub(RING.try_into().unwrap_or(i64::MAX))]),
                _ => Ok(0),
            });
            if let Err(error) = pruned {
                tracing::debug!(%error, "an event is not kept");
            }
        });
        if self.queue.try_send(job).is_err() {
            tracing::debug!("an event is not kept: the database is busy");
        }
    }

    /// All containers, in no order.
    pub async fn containers(&self) -> Result<Vec<Record>> {
        self.call(|connection| {
            let mut statement = connection.prepare("SELECT name, spec, state FROM container")?;
            let rows = statement.query_map([], |row| {
                Ok(Record { name: row.get(0)?, spec: json(row, 1)?, state: json(row, 2)? })
            })?;
            rows.collect()
        })
        .await
    }

    pub async fn insert(&self, record: &Record) -> Result<()> {
        let (id, name) = (record.spec.id.clone(), record.name.clone());
        let (spec, state) = (self.encode(&record.spec)?, self.encode(&record.state)?);
        self.call(move |connection| {
            connection
                .prepare_cached("INSERT INTO container VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id, name, spec, state])
                .map(drop)
        })
        .await
    }

    pub async fn set_state(&self, id: &str, state: &State) -> Result<()> {
        let change = Change { sql: SET_STATE, id: id.to_owned(), value: Some(self.encode(state)?) };
        self.desk(|desk| desk.change(change)).await
    }

    pub async fn set_spec(&self, spec: &Spec) -> Result<()> {
        let text = self.encode(spec)?;
        self.update("UPDATE container SET spec = ?2 WHERE id = ?1", &spec.id, text).await
    }

    pub async fn set_name(&self, id: &str, name: &str) -> Result<()> {
        self.update("UPDATE container SET name = ?2 WHERE id = ?1", id, name.to_owned()).await
    }

    pub async fn delete(&self, id: &str) -> Result<()> {
        let change = Change { sql: DELETE, id: id.to_owned(), value: None };
        self.desk(|desk| desk.change(change)).await
    }

    /// All volumes, in no order.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.call(|connection| {
            let mut statement = connection.prepare("SELECT record FROM volume")?;
            let rows = statement.query_map([], |row| json(row, 0))?;
            rows.collect()
        })
        .await
    }

    pub async fn insert_volume(&self, volume: &Volume) -> Result<()> {
        let (name, record) = (volume.name.clone(), self.encode(volume)?);
        self.call(move |connection| {
            connection
                .prepare_cached("INSERT INTO volume VALUES (?1, ?2)")?
                .execute(params![name, record])
                .map(drop)
        })
        .await
    }

    pub async fn delete_volume(&self, name: &str) -> Result<()> {
        let change = Change { sql: DELETE_VOLUME, id: name.to_owned(), value: None };
        self.desk(|desk| desk.change(change)).await
    }

    async fn update(&self, sql: &'static str, id: &str, value: String) -> Result<()> {
        let id = id.to_owned();
        self.call(move |connection| match connection.prepare_cached(sql)?.execute([id, value])? {
            0 => Err(rusqlite::Error::QueryReturnedNoRows),
            _ => Ok(()),
        })
        .await
    }

    fn encode<T: serde::Serialize>(&self, value: &T) -> Result<String> {
        serde_json::to_string(value).map_err(|e| self.broken(e.to_string()))
    }

    fn broken(&self, why: String) -> Error {
        Error::Database { path: self.path.clone(), why }
    }

    async fn call<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.desk(|desk| work(&mut desk.connection)).await
    }

    async fn desk<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Desk) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |desk| {
            let _ = reply.send(work(desk));
        });
        self.queue.try_send(job).map_err(|e| self.broken(e.to_string()))?;
        match answer.await {
            Ok(done) => done.map_err(|e| self.broken(e.to_string())),
            Err(_) => Err(self.broken("the database thread ended".to_owned())),
        }
    }
}

fn prepare(connection: &mut Connection) -> Result<(), String> {
    let sql = |e: rusqlite::Error| e.to_string();
    connection.busy_timeout(Duration::from_secs(5)).map_err(sql)?;
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        .map_err(sql)?;
    let version: u32 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sql)?;
    let Some(todo) = MIGRATIONS.get(version as usize..) else {
        return Err(format!(
            "its schema version {version} is newer than this hyperd's {}: use a newer hyperd",
            MIGRATIONS.len()
        ));
    };
    for (statements, version) in todo.iter().zip(version + 1..) {
        let transaction = connection.transaction().map_err(sql)?;
        transaction.execute_batch(statements).map_err(sql)?;
        transaction.pragma_update(None, "user_version", version).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e))
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::container::state::{Event, Status};

    fn record(id: &str, name: &str) -> Record {
        Record {
            name: name.into(),
            spec: Spec { id: id.into(), ..Spec::default() },
            state: State::default(),
        }
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let mut kept = record("a1", "one");
        store.insert(&kept).await.unwrap();
        store.insert(&record("b2", "two")).await.unwrap();
        kept.state.apply(Event::StartAsked).unwrap();
        store.set_state("a1", &kept.state).await.unwrap();
        store.set_name("a1", "uno").await.unwrap();
        store.delete("b2").await.unwrap();
        let engine = store.engine_id().await.unwrap();

        let again = Store::open(&path).unwrap();
        let records = again.containers().await.unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].name.as_str(), records[0].state.status), ("uno", Status::Starting));
        assert_eq!(again.engine_id().await.unwrap(), engine);
    }

    #[tokio::test]
    async fn names_are_unique_and_missing_rows_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        store.insert(&record("a1", "same")).await.unwrap();
        assert!(store.insert(&record("b2", "same")).await.is_err());
        assert!(store.set_name("nope", "x").await.is_err());
    }

    #[tokio::test]
    async fn a_state_that_found_the_disk_full_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let mut kept = record("a1", "one");
        store.insert(&kept).await.unwrap();
        store.insert(&record("b2", "two")).await.unwrap();
        kept.state.apply(Event::StartAsked).unwrap();
        // As large as the state gets: it must need a page that is not there.
        kept.state.error = "x".repeat(1 << 20);
        let limit =
            |pages: u32| store.call(move |db| db.pragma_update(None, "max_page_count", pages));
        limit(1).await.unwrap();
        assert!(
            store.insert(&Record { state: kept.state.clone(), ..record("c3", "x") }).await.is_err()
        );
        store.set_state("a1", &kept.state).await.unwrap();
        assert_eq!(store.containers().await.unwrap()[0].state.status, Status::Created);
        limit(1 << 20).await.unwrap();
        let stored = store.containers().await.unwrap();
        assert_eq!(stored.len(), 2);
        assert!(stored.iter().any(|one| one.state == kept.state));
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("99"), "{error}");
    }
}
