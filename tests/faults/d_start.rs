//! A start that was never accepted leaves no trace that counts, and an end counts when it was heard.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use remus::observe::status::Protection;
use rig::{
    pair::{Pair, ended, lost_nothing, patience, replies_more, says, with_hosts},
    remus::{Daemon, start_primary_with},
};
use tokio::time::sleep;

/// A host that is to have nothing to do with the VM, and has the rig's config all the same. Here it is the backup's host,
/// with a tap, an address and a folder of its own.
pub(super) struct WrongHost<'a> {
    pair: &'a Pair,
    folder: PathBuf,
}

impl<'a> WrongHost<'a> {
    pub(super) fn new(pair: &'a Pair) -> Self {
        let folder = pair.folder.path().join("wrong");
        fs::create_dir_all(&folder).unwrap();
        Self { pair, folder }
    }

    fn start(&self, how: &str) -> Daemon {
        self.start_with(how, None)
    }

    /// With a state directory that is not the usual one.
    pub(super) fn start_with(&self, how: &str, state: Option<&Path>) -> Daemon {
        let run_dir = rig::remus::primary_run_dir(&self.folder);
        let old = rig::remus::primary_run_dir(self.pair.folder.path());
        let config = self.pair.config(&[
            ("\"tap0\"", "\"tap7\""),
            ("bridge = \"br0\"\n", ""),
            ("52:54:00:77:00:0a", "52:54:00:77:00:0b"),
            ("\"unprotected\"", how),
            (old.to_str().unwrap(), run_dir.to_str().unwrap()),
        ]);
        let config = match state {
            Some(state) => format!("state_dir = {:?}\n{config}", state.to_str().unwrap()),
            None => config,
        };
        let (host, programs) = (&self.pair.topology.backup, &self.pair.programs);
        let log = self.pair.log("wrong");
        start_primary_with(host, programs, &config, &self.folder, &log).unwrap()
    }

    fn record(&self) -> PathBuf {
        rig::remus::primary_run_dir(&self.folder).join("state/demo.json")
    }
}

#[test]
fn a_vm_started_twice_on_a_wrong_host_costs_the_right_one_nothing() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        let wrong = WrongHost::new(&pair);
        for _ in 0..2 {
            let mut started = wrong.start("\"protected\"");
            says(&mut started, Protection::Waiting, "another primary speaks").await;
            started.process.signal(libc::SIGTERM).unwrap();
            assert_eq!(ended(&mut started).await.code(), Some(0), "{}", pair.logged("wrong"));
            // As before: no term is spent.
            let record = fs::read_to_string(wrong.record()).unwrap();
            assert!(record.contains("\"term\":1,\"standing\":\"starting\""), "{record}");
        }
        // Nor does a record that an older release, or an operator, has left there.
        fs::write(wrong.record(), "{\"term\":7,\"standing\":\"ended\"}").unwrap();
        let mut started = wrong.start("\"protected\"");
        says(&mut started, Protection::Waiting, "another primary speaks").await;
        drop(started);

        for daemon in [&mut primary, &mut backup] {
            let status = daemon.wait_for(Protection::Protected, patience()).await.unwrap();
            assert_eq!(status.term, 1);
        }
        assert_eq!(pair.logged("backup").matches(": session ").count(), 1);
        pair.dies(&mut primary).await;
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        replies_more(&client, 100).await;
        lost_nothing(client, 2).await;
    });
}

#[test]
fn a_guest_that_may_be_heard_at_once_is_not_where_the_backup_knows_another_speaker() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        let wrong = WrongHost::new(&pair);
        let mut started = wrong.start("\"unprotected\"");
        assert_eq!(ended(&mut started).await.code(), Some(1));
        let said = pair.logged("wrong");
        assert!(
            said.contains("VM demo is not started: the backup refuses: another primary"),
            "{said}"
        );
        let record = fs::read_to_string(wrong.record()).unwrap();
        assert!(record.contains("starting"), "its gate has never been open: {record}");
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
    });
}

#[test]
fn a_second_process_does_not_act_on_the_same_record() {
    with_hosts(async |pair| {
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        let wrong = WrongHost::new(&pair);
        let state = rig::remus::primary_run_dir(pair.folder.path()).join("state");
        let mut second = wrong.start_with("\"protected\"", Some(&state));
        assert_eq!(ended(&mut second).await.code(), Some(1));
        let said = pair.logged("wrong");
        assert!(said.contains("another process of this host has VM demo"), "{said}");
        primary.still_runs().unwrap();
    });
}

#[test]
fn an_end_that_the_backup_has_not_heard_is_none_and_the_next_start_says_so() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        pair.set_links(&pair.topology.primary, "repl0", false).await;
        primary.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(1));
        let said = pair.logged("primary");
        assert!(said.contains("has not acknowledged that: it may take the guest over"), "{said}");
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        replies_more(&client, 100).await;

        let mut again = pair.start_primary(&[]);
        assert_eq!(ended(&mut again).await.code(), Some(3));
        let said = pair.logged("primary");
        assert!(said.contains("the backup may have taken over"), "{said}");
        replies_more(&client, 100).await;
        lost_nothing(client, 2).await;
    });
}

#[test]
fn an_end_that_was_heard_is_followed_by_the_next_term() {
    with_hosts(async |pair| {
        let (mut primary, _backup) = pair.protected().await;
        primary.process.signal(libc::SIGTERM).unwrap();
        assert_eq!(ended(&mut primary).await.code(), Some(0), "{}", pair.logged("primary"));
        let mut primary = pair.start_primary(&[]);
        // The backup's follower ends with its guest; the next hello begins another.
        let status = primary.wait_for(Protection::Protected, patience()).await.unwrap();
        assert_eq!(status.term, 2);
    });
}

#[test]
fn a_start_that_was_killed_at_any_moment_stands_in_no_later_ones_way() {
    with_hosts(async |pair| {
        for n in 0..24 {
            let mut primary = pair.start_primary(&[("\"unprotected\"", "\"protected\"")]);
            sleep(Duration::from_millis(10 + 13 * n)).await;
            primary.process.kill().unwrap();
        }
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        drop(pair.guest().await);
        let said = pair.logged("primary");
        assert!(!said.contains("somebody else's"), "{said}");
    });
}
