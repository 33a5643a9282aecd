//! docs/operating.md tells every key of a config, every check and every field of the status, and none that there is not.
//!
//! A new one needs a row there; a name in backquotes in the first column is enough. The rows of counters are written from
//! their tables: `UPDATE_DOCS=1 cargo test -p remus-user --test docs` brings them up to date.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use remus::{
    config::EXAMPLE,
    observe::{
        GateReading, Shared, render,
        status::{Distribution, Failover, Protection, Role, Status},
    },
};
use remus_abi::{
    Term,
    ack::{AckCounter, AckCounters},
    counters::{Counted, Row},
    gate::{Counter, Counters, Mode},
};
use serde_json::Value;

type Names = BTreeSet<String>;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md")
}

/// Returns the text of the document, brought up to date where that was asked for.
fn operating() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let text = fs::read_to_string(path()).unwrap();
        if std::env::var_os("UPDATE_DOCS").is_none() {
            return text;
        }
        let text = up_to_date(&text);
        fs::write(path(), &text).unwrap();
        text
    });
    &TEXT
}

/// Returns the first cells of every table with this head, in the order of the text.
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

/// Returns what stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Returns the names of a cell, where one without a dot belongs where the first one does.
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
    let cells = first_cells(operating(), "| key | default |");
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
    let cells = first_cells(operating(), "| check | refused when |");
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
    let cells = first_cells(text, "| field | |");
    same("field", cells.iter().flat_map(|cell| dotted(cell)).collect(), &there);

    for cell in first_cells(text, "| `protection` | gate |") {
        for word in quoted(&cell) {
            let known = serde_json::from_value::<Protection>(word.into());
            assert!(known.is_ok(), "no VM is {word:?}");
        }
    }
}

/// Returns the rows that docs/operating.md has for a table of counters, shown in this part of the status.
fn rows<T: Counted>(part: &str) -> String {
    let row = |counter: &T| {
        let Row { name, unit, help, .. } = counter.row();
        let alarm = if counter.is_alarm() { "**must be 0**: " } else { "" };
        format!("| `{part}.{name}` | {alarm}{} {help} |\n", unit.name())
    };
    T::all().iter().map(row).collect()
}

/// Returns `text` with these rows in the place of those that it has.
fn with_rows(text: &str, part: &str, rows: &str) -> String {
    let begin = format!("<!-- counters of {part}: written by remus-user/tests/docs.rs -->\n\n");
    let head = "| field | |\n|---|---|\n";
    let (before, after) = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?}"));
    let after = after.strip_prefix(head).expect("the comment is before a table of fields");
    let end = after.find("\n\n").expect("a line of its own ends the table");
    format!("{before}{begin}{head}{}{}", rows.trim_end(), &after[end..])
}

/// Returns `text` with the rows that its tables of counters ought to have.
fn up_to_date(text: &str) -> String {
    let text = with_rows(text, "gate", &rows::<Counter>("gate"));
    with_rows(&text, "trigger", &rows::<AckCounter>("trigger"))
}

#[test]
fn the_docs_have_a_row_for_each_counter_as_its_table_says() {
    let text = operating();
    let expected = up_to_date(text);
    for (is, ought) in text.lines().zip(expected.lines()) {
        assert_eq!(is, ought, "UPDATE_DOCS=1 cargo test -p remus-user --test docs writes the row");
    }
    assert!(text == expected, "UPDATE_DOCS=1 cargo test -p remus-user --test docs writes the rows");
}

/// Returns a status whose counters are all different, and not 0.
fn counted() -> Status {
    let (mut counters, mut acks) = (Counters::default(), AckCounters::default());
    for (counter, value) in Counter::ALL.into_iter().zip(1001..) {
        counters.set(counter, value);
    }
    for (counter, value) in AckCounter::ALL.into_iter().zip(2001..) {
        acks.set(counter, value);
    }
    let shared = Shared::new(&"demo".parse().unwrap(), Role::Primary, Term::FIRST);
    shared.gate(&GateReading {
        mode: Mode::Hold,
        waiting: 0,
        waiting_bytes: 0,
        capacity_bytes: 0,
        residence_us: Distribution::default(),
        counters,
        acks,
    });
    shared.status(None)
}

#[test]
fn a_line_in_its_table_is_all_that_a_counter_needs_to_be_shown_everywhere() {
    fn is_shown<T: Counted>(part: &str, first: u64, json: &Value, text: &str, docs: &str) {
        for (counter, value) in T::all().iter().zip(first..) {
            let name = counter.name();
            assert_eq!(json[part][name], value, "{part}.{name} is not in the JSON");
            let in_text = match counter.is_alarm() {
                true => format!("  ALARM        {part}.{name} is {value} and must be 0"),
                false => format!("{value} {}", name.replace('_', " ")),
            };
            assert!(text.contains(&in_text), "no {in_text:?} in {text}");
            let in_docs = format!("| `{part}.{name}` | ");
            assert!(docs.contains(&in_docs), "docs/operating.md has no row of {part}.{name}");
        }
    }
    let status = counted();
    let (json, text) = (serde_json::to_value(&status).unwrap(), render(&status));
    is_shown::<Counter>("gate", 1001, &json, &text, operating());
    is_shown::<AckCounter>("trigger", 2001, &json, &text, operating());
    // Before everything else.
    let alarms = text.lines().skip(1).take_while(|line| line.starts_with("  ALARM ")).count();
    assert_eq!(alarms, text.matches("ALARM").count(), "{text}");
    assert_eq!(json["trigger"]["refused"], 2003 + 2004 + 2006 + 2007, "as it always was");
}

#[test]
fn a_status_is_read_as_it_was_written_and_that_of_another_version_as_far_as_it_goes() {
    let mut json = serde_json::to_value(counted()).unwrap();
    let back: Status = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(back.gate.counters, counted().gate.counters);
    assert_eq!(back.trigger.counters, counted().trigger.counters);
    let gate = json["gate"].as_object_mut().unwrap();
    gate.remove("unguarded");
    gate.insert("what_the_next_version_counts".into(), [1, 2].into());
    let back: Status = serde_json::from_value(json).unwrap();
    assert_eq!(back.gate.counters.get(Counter::Unguarded), 0);
    assert_eq!(back.gate.counters.get(Counter::Held), 1001);
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

/// Returns the words in backquotes that are paths of sources, those in braces one by one.
fn sources_in(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs"));
    let paths = quoted.flat_map(|word| match word.split_once('{') {
        None => vec![word.to_owned()],
        Some((before, rest)) => {
            let (names, after) = rest.split_once('}').expect("a brace that ends");
            names.split(',').map(|name| format!("{before}{name}{after}")).collect()
        }
    });
    paths.collect()
}

/// Adds every file below `folder`, by its path from there.
fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn the_docs_name_sources_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for folder in ["remus-abi", "remus-ebpf/src", "remus-guest/src", "remus-user", "tests", "xtask"]
    {
        files_below(&root.join(folder), &mut files);
    }
    for document in ["ARCHITECTURE.md", "docs/protocol.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let named = sources_in(&text);
        assert!(!named.is_empty(), "{document} names no source");
        let gone: Vec<_> =
            named.iter().filter(|name| !files.iter().any(|file| file.ends_with(name))).collect();
        assert!(gone.is_empty(), "{document} names sources that are gone: {gone:?}");
    }
}
