//! The rooms of the library, and which of them a room may import: the rule of ARCHITECTURE.md, held to the source.
//!
//! A room is a folder or a file directly below `src`. Rooms stand in an order, and each imports only from rooms before it,
//! and of those only the ones that the table names. Within a room no two files import each other, directly or by way of
//! others; what a file takes from the `mod.rs` above it does not count.
//!
//! Not seen: a path among a macro's arguments, which syn does not parse.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Item, UseTree,
    visit::{self, Visit},
};

/// Each room, in order, with the rooms that it imports.
const ROOMS: &[(&str, &[&str])] = &[
    // The ground.
    ("names", &[]),
    ("os", &["names"]),
    ("outlet", &["names", "os"]),
    ("signals", &[]),
    // Pure.
    ("checkpoint", &[]),
    ("wire", &["names"]),
    ("replication", &["checkpoint", "wire"]),
    // Each owns one kind of resource.
    ("machine", &["checkpoint", "names", "os", "outlet"]),
    ("gate", &["names", "os", "replication", "wire"]),
    ("link", &["checkpoint", "wire"]),
    ("store", &["names", "os", "replication", "wire"]),
    ("net", &["os"]),
    ("observe", &["names", "os", "outlet"]),
    // What the operator wants, in the words of the rooms before.
    ("config", &["checkpoint", "gate", "machine", "names", "net", "replication"]),
    // What joins resources.
    ("checks", &["config", "gate", "machine", "names", "net", "observe", "os", "store"]),
    ("watch", &["checks", "names", "net", "os", "store"]),
    ("standby", &["checkpoint", "gate", "machine", "names", "net", "wire"]),
    (
        "engine",
        &[
            "checkpoint",
            "gate",
            "link",
            "machine",
            "names",
            "observe",
            "os",
            "replication",
            "standby",
            "store",
            "watch",
            "wire",
        ],
    ),
    ("supervisor", &["engine", "gate", "link", "net", "os", "replication", "wire"]),
    // The roles, and what an operator touches.
    ("terminal", &["machine", "outlet"]),
    (
        "primary",
        &[
            "checkpoint",
            "checks",
            "config",
            "engine",
            "gate",
            "link",
            "machine",
            "observe",
            "os",
            "replication",
            "signals",
            "standby",
            "store",
            "supervisor",
            "terminal",
            "watch",
            "wire",
        ],
    ),
    (
        "backup",
        &[
            "checkpoint",
            "checks",
            "config",
            "engine",
            "gate",
            "link",
            "machine",
            "names",
            "net",
            "observe",
            "os",
            "replication",
            "signals",
            "standby",
            "store",
            "watch",
            "wire",
        ],
    ),
    ("standalone", &["gate", "names", "net", "observe", "os", "replication", "signals", "wire"]),
    (
        "cli",
        &[
            "backup",
            "checks",
            "config",
            "gate",
            "names",
            "net",
            "observe",
            "outlet",
            "primary",
            "signals",
            "standalone",
            "store",
            "terminal",
        ],
    ),
];

/// A module, by the names on the way to it.
type Module = Vec<String>;

struct Source {
    /// Every module that has a file, with what the file says.
    files: BTreeMap<Module, syn::File>,
}

impl Source {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                    files.insert(module_of(path.strip_prefix(&root).unwrap()), parsed);
                }
            }
        }
        Self { files }
    }

    /// The module that `path`, as written in `from`, leads to: the deepest one that has a file. `None` for what is not of
    /// this crate.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut at = from.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    at.pop()?;
                    rest = &rest[1..];
                }
            }
            child => {
                let below = [from.as_slice(), &[child.to_owned()]].concat();
                if !self.files.contains_key(&below) {
                    return None;
                }
            }
        }
        for word in rest {
            let below = [at.as_slice(), std::slice::from_ref(word)].concat();
            if self.files.contains_key(&below) {
                at = below;
                continue;
            }
            // A name that the module has from one below it.
            if let Some(origin) = self.reexported(&at, word) {
                at = origin;
            }
            break;
        }
        Some(at)
    }

    /// The module below `module` from which its file takes `name`.
    fn reexported(&self, module: &Module, name: &str) -> Option<Module> {
        let file = self.files.get(module)?;
        file.items.iter().find_map(|item| {
            let Item::Use(item) = item else { return None };
            let mut paths = Vec::new();
            flatten(&item.tree, &mut Vec::new(), &mut paths);
            let path = paths.iter().find(|path| path.last().is_some_and(|last| last == name))?;
            let origin = &path[..path.len() - 1];
            let first = origin.first()?;
            let origin = if first == "self" { &origin[1..] } else { origin };
            let below = [module.as_slice(), origin].concat();
            (below.len() > module.len() && self.files.contains_key(&below)).then_some(below)
        })
    }

    /// The modules that the file of `from` imports.
    fn imports(&self, from: &Module) -> BTreeSet<Module> {
        let mut found = Paths::default();
        found.visit_file(&self.files[from]);
        let all = found.0.iter().filter_map(|path| self.resolve(from, path));
        all.filter(|to| to != from).collect()
    }
}

fn module_of(path: &Path) -> Module {
    let mut module: Module =
        path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
        module.pop();
    }
    module
}

/// Every path that a file writes.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        flatten(&item.tree, &mut Vec::new(), &mut self.0);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // So do tests within a file.
        if !item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words = path.segments.iter().map(|segment| segment.ident.to_string());
        let words: Vec<_> = words.collect();
        if words.len() > 1 {
            self.0.push(words);
        }
        visit::visit_path(self, path);
    }
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, into: &mut Vec<Vec<String>>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, into);
            before.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|item| flatten(item, before, into)),
        UseTree::Name(name) if name.ident == "self" => into.push(before.clone()),
        UseTree::Name(name) => into.push([before.as_slice(), &[name.ident.to_string()]].concat()),
        UseTree::Rename(name) => into.push([before.as_slice(), &[name.ident.to_string()]].concat()),
        UseTree::Glob(_) => into.push(before.clone()),
    }
}

/// Tests import as they need.
fn is_test(module: &Module) -> bool {
    module.iter().any(|word| word == "tests")
}

/// Edges between rooms, each with a file that has it.
fn edges(source: &Source) -> BTreeMap<(String, String), Module> {
    let mut edges = BTreeMap::new();
    for from in source.files.keys().filter(|from| !from.is_empty() && !is_test(from)) {
        for to in source.imports(from).into_iter().filter(|to| !to.is_empty() && to[0] != from[0]) {
            edges.insert((from[0].clone(), to[0].clone()), from.clone());
        }
    }
    edges
}

#[test]
fn imports_between_rooms_are_those_of_the_table_and_all_of_them_are_used() {
    let source = Source::read();
    let found = edges(&source);
    let allowed: BTreeSet<_> = ROOMS
        .iter()
        .flat_map(|(from, all)| all.iter().map(|to| ((*from).to_owned(), (*to).to_owned())))
        .collect();
    let mut wrong = Vec::new();
    for ((from, to), file) in &found {
        if !allowed.contains(&(from.clone(), to.clone())) {
            wrong.push(format!("{from} must not import {to}: {} does", file.join("::")));
        }
    }
    for (from, to) in &allowed {
        if !found.contains_key(&(from.clone(), to.clone())) {
            wrong.push(format!("{from} does not import {to}: take the edge out of the table"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_go_to_rooms_that_stand_before_and_every_room_has_a_place() {
    let names: Vec<_> = ROOMS.iter().map(|(room, _)| *room).collect();
    for (at, (room, imports)) in ROOMS.iter().enumerate() {
        for import in *imports {
            let place = names.iter().position(|name| name == import);
            assert!(place.is_some_and(|place| place < at), "{room} imports {import}");
        }
    }
    let source = Source::read();
    let rooms: BTreeSet<_> = source.files.keys().filter_map(|module| module.first()).collect();
    let unplaced: Vec<_> = rooms.iter().filter(|room| !names.contains(&room.as_str())).collect();
    assert!(unplaced.is_empty(), "rooms without a place in the table: {unplaced:?}");
    let map = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let map = fs::read_to_string(map).unwrap();
    let untold: Vec<_> = names.iter().filter(|name| !map.contains(&format!("`{name}`"))).collect();
    assert!(untold.is_empty(), "rooms that ARCHITECTURE.md does not tell of: {untold:?}");
}

#[test]
fn imports_run_in_no_circle_within_a_room() {
    let source = Source::read();
    let imports: BTreeMap<_, BTreeSet<_>> = source
        .files
        .keys()
        .filter(|module| !is_test(module))
        .map(|from| {
            // What a file takes from those above it, and what those take from it, is how a room is built.
            let beside = |to: &Module| !from.starts_with(to) && !to.starts_with(from);
            (from.clone(), source.imports(from).into_iter().filter(beside).collect())
        })
        .collect();
    let mut circles = BTreeSet::new();
    for start in imports.keys() {
        if let Some(circle) = circle_through(start, &imports) {
            let mut sorted = circle.clone();
            sorted.sort();
            circles.insert(
                sorted.iter().map(|module| module.join("::")).collect::<Vec<_>>().join(" <-> "),
            );
        }
    }
    assert!(circles.is_empty(), "\n{}", circles.into_iter().collect::<Vec<_>>().join("\n"));
}

/// The shortest way from `start` back to itself.
fn circle_through(
    start: &Module,
    imports: &BTreeMap<Module, BTreeSet<Module>>,
) -> Option<Vec<Module>> {
    let mut ways = vec![vec![start.clone()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in imports.get(way.last()?).into_iter().flatten() {
                if next == start {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    longer.push([way.as_slice(), std::slice::from_ref(next)].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

#[test]
fn imports_of_every_form_are_seen() {
    let text =
        "use crate::{gate::{self, Gate}, net}; fn f() -> crate::store::Store { super::link::x() }";
    let mut paths = Paths::default();
    paths.visit_file(&syn::parse_file(text).unwrap());
    let found: Vec<_> = paths.0.iter().map(|path| path.join("::")).collect();
    for path in
        ["crate::gate", "crate::gate::Gate", "crate::net", "crate::store::Store", "super::link::x"]
    {
        assert!(found.iter().any(|it| it == path), "{path}: {found:?}");
    }
}
