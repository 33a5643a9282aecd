//! However the rig ends, nothing of it is left: no process, namespace, mount, link, or file under /run.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rig::sys;

/// What could be left behind.
#[derive(PartialEq, Eq, Debug)]
struct Traces {
    mounts: String,
    links: BTreeSet<PathBuf>,
    run: BTreeSet<PathBuf>,
}

impl Traces {
    fn now() -> Self {
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            links: listing("/sys/class/net"),
            run: listing("/run"),
        }
    }
}

fn listing(folder: &str) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// A rig that is up, and the network namespaces in it.
struct Up {
    outer: Child,
    inner: u32,
    namespaces: BTreeSet<PathBuf>,
}

fn up() -> Up {
    let mut outer = Command::new(env!("CARGO_BIN_EXE_remus-rig"))
        .arg("up")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(outer.stdout.take().unwrap()).lines();
    let entrances: Vec<String> =
        lines.map(Result::unwrap).filter(|line| line.contains("nsenter")).take(3).collect();
    let word = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap().to_owned();
    let inner = word(&entrances[0], 3).parse().unwrap();
    let namespaces = entrances.iter().map(|line| {
        let fd = word(line, 5).strip_prefix("--net=").unwrap().to_owned();
        fs::read_link(fd).unwrap()
    });
    Up { namespaces: namespaces.collect(), outer, inner }
}

/// Whether any process has one of the namespaces, as its own or by a descriptor.
fn anybody_holds(namespaces: &BTreeSet<PathBuf>) -> bool {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes.filter(|path| path.join("ns/net").exists()).any(|process| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let links = descriptors.map(|entry| entry.path()).chain([process.join("ns/net")]);
        links.filter_map(|link| fs::read_link(link).ok()).any(|to| namespaces.contains(&to))
    })
}

fn ends_with_nothing_left(signal: libc::c_int) {
    let before = Traces::now();
    let Up { mut outer, inner, namespaces } = up();
    assert_eq!(namespaces.len(), 3);
    assert!(anybody_holds(&namespaces));

    sys::kill(outer.id(), signal).unwrap();
    outer.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while PathBuf::from(format!("/proc/{inner}")).exists() || anybody_holds(&namespaces) {
        assert!(Instant::now() < until, "the inner process outlived the rig");
        sleep(Duration::from_millis(10));
    }
    assert_eq!(Traces::now(), before);
}

#[test]
fn a_killed_rig_leaves_nothing_behind() {
    ends_with_nothing_left(libc::SIGKILL);
}

#[test]
fn an_interrupted_rig_leaves_nothing_behind() {
    ends_with_nothing_left(libc::SIGINT);
}
