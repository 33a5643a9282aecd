//! Two guests of one VM that were both heard are never merged, and neither gives way: an operator chooses. Two VMs of one
//! name are told apart by their ids.

use std::{fs, path::Path};

use remus::{
    machine::CpuProfile,
    observe::status::Protection,
    wire::{Ancestry, Hello, Nonce, Refusal, Refuse, TermId, ToPrimary, VmId},
};
use remus_abi::Term;
use rig::{
    pair::{Pair, ended, lost_nothing, patience, replies_more, says, with_hosts},
    peer::{ask, backup_listens, hello},
    remus::{Daemon, VM, backup_run_dir, primary_run_dir},
    topology::{BACKUP, BRIDGE, PRIMARY},
};

use super::{d_start::WrongHost, j_message::Started};

fn record(state: &Path) -> String {
    fs::read_to_string(state.join("demo.json")).unwrap()
}

/// Ends a daemon in order.
async fn end(daemon: &mut Daemon) {
    daemon.process.signal(libc::SIGTERM).unwrap();
    let status = ended(daemon).await;
    assert_eq!(status.code(), Some(0), "{}", daemon.tail());
}

/// An operator gives up what the backup's host knows of the VM.
async fn forget_at_the_backup(pair: &Pair) {
    let run_dir = backup_run_dir(pair.folder.path());
    let words = ["clean", VM, "--record", "--run-dir", run_dir.to_str().unwrap()];
    let (code, said) = pair.remus(&pair.topology.backup, &[], &words).await;
    assert_eq!(code, 0, "{said}");
}

#[test]
fn two_hosts_that_each_ran_the_vm_by_themselves_are_split_until_an_operator_chooses() {
    with_hosts(async |pair| {
        let (ours, theirs) =
            (primary_run_dir(pair.folder.path()).join("state"), pair.backup_state());
        pair.set_links(&pair.topology.primary, "repl0", false).await;
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        drop(pair.guest().await);
        let other = WrongHost::new(&pair);
        let mut other = other.start_with("\"unprotected\"", Some(&theirs));
        other.wait_for(Protection::Unprotected, patience()).await.unwrap();
        end(&mut other).await;

        // The one becomes the backup of the other, whose guest still runs.
        let before = (record(&ours), record(&theirs));
        let mut backup = pair.start_backup();
        backup_listens(&pair, &mut backup).await;
        pair.set_links(&pair.topology.primary, "repl0", true).await;
        let status = says(&mut primary, Protection::Waiting, "VM demo is in a split").await;
        let reason = &status.reason;
        assert_eq!(reason.matches("in term 1 (nonce ").count(), 2, "{reason}");
        for word in
            ["Choose whose state", "remus clean demo --record", "the gate of this host is shut"]
        {
            assert!(reason.contains(word), "no {word:?} in: {reason}");
        }
        assert_eq!(status.gate.mode, "closed");
        assert_eq!((record(&ours), record(&theirs)), before, "nobody has given way");
        // Nor is it opened by a new start.
        end(&mut primary).await;
        let mut primary = pair.start_primary(&[]);
        assert_eq!(ended(&mut primary).await.code(), Some(1));
        let said = pair.logged("primary");
        let words = "VM demo is not started: the backup refuses: VM demo is in a split";
        assert!(said.contains(words), "{said}");
        assert_eq!(record(&theirs), before.1);

        end(&mut backup).await;
        forget_at_the_backup(&pair).await;
        let _backup = pair.start_backup();
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
        lost_nothing(pair.client(2).await, 2).await;
    });
}

/// What a primary says that was heard as `nonce` in `term`, and in no other, and has the VM's id.
fn speaker(id: VmId, nonce: u64, term: Term) -> Hello {
    let cpu = serde_json::to_string(&CpuProfile::of_host().unwrap()).unwrap();
    let nonce = Nonce::new(nonce).unwrap();
    let ancestry = Ancestry::none().spoken_in(TermId::new(term, nonce));
    Hello { id, nonce, term, ancestry, ..hello(256, &cpu) }
}

fn refused(answer: ToPrimary) -> Refuse {
    match answer {
        ToPrimary::Refuse(refuse) => refuse,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_promoted_guest_falls_silent_for_another_speaker_of_its_vm_and_for_nobody_else() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(2).await;
        primary.process.kill().unwrap();
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        replies_more(&client, 100).await;
        let known: serde_json::Value = serde_json::from_str(&record(&pair.backup_state())).unwrap();
        let id: VmId = known["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(known["ancestry"].as_array().unwrap().len(), 2, "{known}");
        assert_eq!(known["spoke"]["term"], 2, "{known}");

        let newer = Term::new(9).unwrap();
        let silent = Hello { ancestry: Ancestry::none(), ..speaker(id, 7, newer) };
        assert_eq!(refused(ask(&pair, silent)).why, Refusal::Promoted);
        let namesake = speaker(VmId::new(7).unwrap(), 7, newer);
        assert_eq!(refused(ask(&pair, namesake)).why, Refusal::Split);
        replies_more(&client, 100).await;
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();

        assert_eq!(refused(ask(&pair, speaker(id, 7, newer))).why, Refusal::Split);
        let status = says(&mut backup, Protection::Waiting, "is in a split").await;
        assert_eq!(status.gate.mode, "closed");
    });
}

#[test]
fn a_vm_made_anew_under_an_old_name_is_refused_where_the_old_one_is_known() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        end(&mut primary).await;
        let before = record(&pair.backup_state());
        let run_dir = primary_run_dir(pair.folder.path());
        let words = ["clean", VM, "--record", "--run-dir", run_dir.to_str().unwrap()];
        let (code, said) = pair.remus(&pair.topology.primary, &[], &words).await;
        assert_eq!(code, 0, "{said}");

        let mut primary = pair.start_primary(&[("\"unprotected\"", "\"protected\"")]);
        let status = says(&mut primary, Protection::Waiting, "two VMs have one name").await;
        assert!(status.reason.contains("remus clean demo --record"), "{}", status.reason);
        end(&mut primary).await;
        let mut primary = pair.start_primary(&[]);
        assert_eq!(ended(&mut primary).await.code(), Some(1));
        let said = pair.logged("primary");
        assert!(said.contains("VM demo is not started: the backup refuses: "), "{said}");
        assert_eq!(record(&pair.backup_state()), before);

        end(&mut backup).await;
        forget_at_the_backup(&pair).await;
        let _backup = pair.start_backup();
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Protected, patience()).await.unwrap();
    });
}

#[test]
fn a_host_that_was_taken_over_from_follows_the_one_that_took_over() {
    with_hosts(async |pair| {
        let (alpha, beta) = (&pair.topology.primary, &pair.topology.backup);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let alphas = path(&primary_run_dir(pair.folder.path()));
        let betas = path(&backup_run_dir(pair.folder.path()));
        let (mut primary, mut backup) = pair.protected().await;
        primary.process.kill().unwrap();
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        end(&mut backup).await;
        // What the dead VM left goes, its record stays.
        let (code, said) = pair.remus(alpha, &[], &["clean", VM, "--run-dir", &alphas]).await;
        assert_eq!(code, 0, "{said}");
        let before = record(&Path::new(&alphas).join("state"));
        assert!(before.contains("\"standing\":\"protected\""), "{before}");

        let listen = format!("{PRIMARY}:7000");
        let words = ["backup", "--listen", &listen, "--run-dir", &alphas, "--bridge", BRIDGE];
        let mut backup = Started::new(&pair, alpha, Path::new(&alphas), "alpha", &words);
        let config = pair.config(&[(&alphas, &betas), (&BACKUP.to_string(), &listen)]);
        let file = pair.folder.path().join("beta.toml");
        fs::write(&file, config).unwrap();
        let words = ["run", file.to_str().unwrap()];
        let mut primary = Started::new(&pair, beta, Path::new(&betas), "beta", &words);
        primary.is(Protection::Protected).await;
        backup.is(Protection::Protected).await;

        let known: serde_json::Value =
            serde_json::from_str(&record(&Path::new(&alphas).join("state"))).unwrap();
        let before: serde_json::Value = serde_json::from_str(&before).unwrap();
        assert_eq!((&known["standing"], &known["term"]), (&"backup".into(), &3.into()), "{known}");
        assert_eq!(known["id"], before["id"]);
        // It comes from the term in which this host spoke, which this host remembers.
        assert_eq!(known["ancestry"][0]["nonce"], before["nonce"], "{known}");
        assert_eq!(known["spoke"], before["spoke"]);
        let taken_over_from = &known["ancestry"][0]["last"];
        assert!(taken_over_from.as_u64().is_some_and(|epoch| epoch > 0), "{known}");
    });
}
