//! Changes, and what a check has found, as JSON; docs/operating.md has the schema.

use level_replicator::{Change, ChangeKind, Cursor, Db, Error, Verification};
use serde_json::{Map, Value, json};

use crate::json;

/// Bytes of keys and values after which no more changes are read at once.
const PAGE_BYTES: usize = 4 << 20;

/// Some changes that follow a cursor.
#[derive(Debug)]
pub struct Page {
    /// Behind the last of them.
    pub cursor: Cursor,
    /// Each as a JSON object.
    pub changes: Vec<Value>,
}

impl Page {
    /// At most `limit` changes behind a cursor whose keys begin with `prefix`. What has another key is passed over.
    ///
    /// # Errors
    ///
    /// As [`Db::changes`].
    pub fn read(db: &Db, cursor: Cursor, prefix: &[u8], limit: usize) -> Result<Page, Error> {
        let mut changes = db.changes(cursor)?;
        let mut page = Page {
            cursor,
            changes: Vec::new(),
        };
        let (mut seen, mut bytes) = (0, 0);
        while seen < limit
            && bytes < PAGE_BYTES
            && let Some(change) = changes.try_next()?
        {
            seen += 1;
            page.cursor = change.cursor;
            if change.key.starts_with(prefix) {
                let (value, size) = change_json(db, &change)?;
                bytes += size;
                page.changes.push(value);
            }
        }
        Ok(page)
    }

    /// All of it as one object.
    pub fn to_json(&self) -> String {
        json!({ "cursor": self.cursor.to_string(), "changes": self.changes }).to_string()
    }
}

/// A change with the value that readers see by now, and how many bytes both take, about.
///
/// # Errors
///
/// As [`Db::get`].
pub fn change_json(db: &Db, change: &Change) -> Result<(Value, usize), Error> {
    let mut object = Map::new();
    object.insert("cursor".to_owned(), change.cursor.to_string().into());
    json::put(&mut object, "key", &change.key);
    let kind = match change.kind {
        ChangeKind::Put => "put",
        ChangeKind::Delete => "delete",
        ChangeKind::Expired => "expired",
    };
    object.insert("kind".to_owned(), kind.into());
    let mut size = 200 + change.key.len();
    if change.kind == ChangeKind::Put
        && let Some(value) = db.get(&change.key)?
    {
        size += value.len();
        json::put(&mut object, "value", &value);
    }
    let origin = change.origin.map(|replica| replica.to_string());
    object.insert("origin".to_owned(), origin.into());
    object.insert("local".to_owned(), change.is_local.into());
    object.insert("concurrent".to_owned(), change.is_concurrent.into());
    let write = change.dot.map(|dot| dot.to_string());
    object.insert("write".to_owned(), write.into());
    Ok((Value::Object(object), size))
}

/// What a check has found.
pub fn verification_json(found: &Verification) -> String {
    let findings = found.findings.iter().map(|finding| {
        let mut object = Map::new();
        let table = format!("{:?}", finding.table).to_lowercase();
        object.insert("table".to_owned(), table.into());
        json::put(&mut object, "key", &finding.key);
        object.insert("problem".to_owned(), finding.problem.clone().into());
        object.insert("cure".to_owned(), finding.cure.into());
        Value::Object(object)
    });
    json!({
        "sound": found.is_sound(),
        "rows": found.rows,
        "keys": found.keys,
        "digest": format!("{:032x}", found.digest),
        "findings_count": found.findings_count,
        "findings": findings.collect::<Vec<_>>(),
    })
    .to_string()
}
