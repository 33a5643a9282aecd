//! docs/operating.md tells every key of a config, every check and every field of the status, and none that there is not.
//!
//! A new one needs a row there; a name in backquotes in the first column is enough.

use std::{collections::BTreeSet, fs, path::Path};

use remus::{
    config::EXAMPLE,
    observe::{
        Shared,
        status::{Failover, Protection, Role},
    },
};
use remus_abi::Term;
use serde_json::Value;

type Names = BTreeSet<String>;

fn operating() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    fs::read_to_string(path).unwrap()
}

/// The first cells of every table with this head, in the order of the text.
fn first_cells(text: &str, head: &str) -> Vec<String> {
    let mut cells = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with(head) {
            let rows = lines.by_ref().skip(1).take_while(|line| line.starts_with('|'));
            cells.extend(rows.map(|row| row.split('|').nth(1).unwrap().trim().to_owned()));
        }
    }
    assert!(!cells.is_empty(), "there is no table {head:?}");
    cells
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The names of a cell, where one without a dot belongs where the first one does.
fn dotted(cell: &str) -> Vec<String> {
    let first = quoted(cell).next().unwrap_or_default();
    let place = first.rsplit_once('.').map_or(String::new(), |(place, _)| format!("{place}."));
    let whole =
        |name: &str| if name.contains('.') { name.to_owned() } else { format!("{place}{name}") };
    quoted(cell).map(whole).collect()
}

fn same(what: &str, documented: Vec<String>, there: &Names) {
    let told: Names = documented.iter().cloned().collect();
    assert_eq!(told.len(), documented.len(), "a {what} has two rows: {documented:?}");
    let missing: Vec<_> = there.difference(&told).collect();
    assert!(missing.is_empty(), "docs/operating.md does not tell of the {what} {missing:?}");
    let surplus: Vec<_> = told.difference(there).collect();
    assert!(surplus.is_empty(), "there is no {what} {surplus:?}, of which docs/operating.md tells");
}

#[test]
fn the_docs_tell_every_key_of_a_config() {
    // As the example says: removing a `#` that no blank follows makes a key of a comment.
    let all: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => format!("{rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let mut keys = Names::new();
    flatten(&toml::from_str::<toml::Value>(&all).unwrap(), "", &mut keys);
    let cells = first_cells(&operating(), "| key | default |");
    same("key", cells.iter().flat_map(|cell| dotted(cell)).collect(), &keys);
}

fn flatten(value: &toml::Value, path: &str, keys: &mut Names) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(value, &path, keys);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            items.iter().for_each(|item| flatten(item, path, keys));
        }
        _ => {
            keys.insert(path.to_owned());
        }
    }
}

#[test]
fn the_docs_tell_every_check() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checks");
    let mut there = Names::new();
    for file in fs::read_dir(folder).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        // Not what tests make up.
        let source = source.split("#[cfg(test)]").next().unwrap();
        for call in ["NAME: &str = ", "Check::ok(", "Check::warning(", "Check::refused(", "place("]
        {
            for (at, _) in source.match_indices(call) {
                let argument = source[at + call.len()..].trim_start();
                there.extend(
                    argument
                        .strip_prefix('"')
                        .map(|name| name.split('"').next().unwrap().to_owned()),
                );
            }
        }
    }
    assert!(there.len() > 15, "the checks are not where they were: {there:?}");
    let cells = first_cells(&operating(), "| check | refused when |");
    let told = cells.iter().flat_map(|cell| cell.split(", ")).map(str::to_owned).collect();
    same("check", told, &there);
}

#[test]
fn the_docs_tell_every_field_of_the_status() {
    let shared = Shared::new(&"demo".parse().unwrap(), Role::Primary, Term::FIRST);
    shared.took_over(Failover::default());
    let status = serde_json::to_value(shared.status(None)).unwrap();
    let mut there = Names::new();
    fields(&status, "", &mut there);
    let text = operating();
    let cells = first_cells(&text, "| field | |");
    same("field", cells.iter().flat_map(|cell| dotted(cell)).collect(), &there);

    for cell in first_cells(&text, "| `protection` | gate |") {
        for word in quoted(&cell) {
            let known = serde_json::from_value::<Protection>(word.into());
            assert!(known.is_ok(), "no VM is {word:?}");
        }
    }
}

/// The names of all values; a distribution and the map of a pause's parts are one.
fn fields(value: &Value, path: &str, names: &mut Names) {
    let is_whole =
        |map: &serde_json::Map<String, Value>| map.contains_key("p50") || path == "pause_parts_us";
    match value {
        Value::Object(map) if !is_whole(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                fields(value, &path, names);
            }
        }
        _ => {
            names.insert(path.to_owned());
        }
    }
}
