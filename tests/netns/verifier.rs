//! What the verifier says of the gate's programs: it takes them, and they do not grow unnoticed.

use std::{collections::BTreeMap, fmt::Write, fs};

use aya::{Ebpf, EbpfLoader, programs::Program};

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/gate.o");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/verifier.txt");
const HEAD: &str = "\
# Instructions that the verifier has walked through, per program (bpf_prog_info.verified_insns), on Linux 6.18.
# A test fails when a program grows by more than 10 %, or is not listed. When the growth is meant, copy what the
# test prints.
";

/// Loads every program of the object; says how many instructions the verifier has walked through for each.
fn verified() -> BTreeMap<String, u32> {
    let mut loaded =
        EbpfLoader::new().load_file(OBJECT).expect("load the gate's object: needs root");
    let names: Vec<_> = loaded.programs().map(|(name, _)| name.to_owned()).collect();
    names
        .into_iter()
        .map(|name| (verified_of(&mut loaded, &name), name))
        .map(|(n, name)| (name, n))
        .collect()
}

fn verified_of(loaded: &mut Ebpf, name: &str) -> u32 {
    let program = loaded.program_mut(name).unwrap();
    let taken = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::SocketFilter(program) => program.load(),
        other => panic!("the gate has no programs like {name}: {:?}", other.prog_type()),
    };
    taken.unwrap_or_else(|e| panic!("the verifier refuses {name}: {e:#}"));
    program.info().unwrap().verified_instruction_count().expect("Linux 5.16 and later")
}

fn golden(text: &str) -> BTreeMap<String, u32> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, count) = line.split_once(' ').expect("a name and a number");
            (name.to_owned(), count.trim().parse().expect("a number"))
        })
        .collect()
}

#[test]
fn no_program_grows_unnoticed() {
    let now = verified();
    // Each kernel walks its own way: elsewhere it is enough that the verifier takes them.
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    if !kernel.starts_with("6.18.") {
        return;
    }
    let golden = golden(&fs::read_to_string(GOLDEN).unwrap_or_default());
    let wrong: Vec<_> = now
        .iter()
        .filter_map(|(name, &count)| match golden.get(name) {
            None => Some(format!("{name} is not listed")),
            Some(&was) if u64::from(count) * 10 > u64::from(was) * 11 => {
                Some(format!("{name} has grown from {was} to {count}"))
            }
            Some(_) => None,
        })
        .chain(
            golden
                .keys()
                .filter(|name| !now.contains_key(*name))
                .map(|name| format!("{name} is no more")),
        )
        .collect();
    let mut update = HEAD.to_owned();
    for (name, count) in &now {
        writeln!(update, "{name} {count}").unwrap();
    }
    assert!(
        wrong.is_empty(),
        "{}; if it is meant, write to tests/golden/verifier.txt:\n{update}",
        wrong.join(", ")
    );
}
