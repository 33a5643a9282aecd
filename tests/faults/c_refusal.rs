//! A refused message changes nothing.

use std::{fs, io::Write};

use remus::{
    machine::CpuProfile,
    observe::status::Protection,
    wire::{
        Ancestry, Attach, Goodbye, GoodbyeWhy, Heartbeat, Hello, Moment, Nonce, Session, TermId,
        Timing, ToPrimary, VmId,
    },
};
use remus_abi::{Epoch, Term};
use rig::{
    pair::{Pair, lost_nothing, patience, replies_more, with_hosts},
    peer::{ask, connect, hello},
};

/// The VM that the backup knows, and the primary that it follows, as its record has them.
fn known(pair: &Pair) -> (VmId, Nonce) {
    let record = fs::read_to_string(pair.backup_state().join("demo.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let nonce = Nonce::new(record["nonce"].as_u64().unwrap()).unwrap();
    (record["id"].as_str().unwrap().parse().unwrap(), nonce)
}

/// Hellos that no backup may take while it protects the guest `id` of `owner`, in the term 1.
fn refusable((id, owner): (VmId, Nonce)) -> Vec<Hello> {
    let cpu = serde_json::to_string(&CpuProfile::of_host().unwrap()).unwrap();
    let second = Term::FIRST.next();
    let stranger = Nonce::new(7).unwrap();
    let hello = |memory_mib, cpu: &str| Hello { id, ..hello(memory_mib, cpu) };
    let good = hello(256, &cpu);
    let mut better: serde_json::Value = serde_json::from_str(&cpu).unwrap();
    for leaf in better["leaves"].as_array_mut().unwrap() {
        if leaf["function"] == 7 && leaf["index"] == 0 {
            leaf["ebx"] = u32::MAX.into();
        }
    }
    let odd = [
        hello(60_000, &cpu),
        hello(64, &cpu),
        hello(256, &better.to_string()),
        hello(256, "{}"),
        Hello { ram_pages: 3, ..good.clone() },
        Hello { shape: b"{}".to_vec(), ..good.clone() },
        Hello { shape: replaced(&good.shape, "\"none\"", "\"segmentation\""), ..good.clone() },
        Hello { shape: replaced(&good.shape, "\"vcpus\":1", "\"vcpus\":0"), ..good.clone() },
        Hello { shape: replaced(&good.shape, "\"vcpus\":1", "\"vcpus\":2"), ..good.clone() },
        Hello {
            shape: replaced(&good.shape, "\"buffer_mib\":1", "\"buffer_mib\":3"),
            ..good.clone()
        },
        Hello {
            shape: replaced(
                &good.shape,
                "\"disks\":[]",
                "\"disks\":[{\"path\":\"/etc/passwd\",\"id\":\"\",\"readonly\":true,\"bytes\":512,\"sample\":1}]",
            ),
            ..good.clone()
        },
        Hello {
            timing: Timing { lease: Timing::default().detect, ..Timing::default() },
            ..good.clone()
        },
    ];
    let mut all = Vec::new();
    for (nonce, term) in [(owner, Term::FIRST), (owner, second), (stranger, second)] {
        all.extend(odd.iter().map(|hello| Hello { nonce, term, ..hello.clone() }));
    }
    for (nonce, term) in [
        (stranger, Term::FIRST),
        (stranger, second),
        (stranger, Term::MAX),
        (owner, Term::MAX),
        (owner, Term::NONE),
    ] {
        all.push(Hello { nonce, term, ..good.clone() });
    }
    // Another VM of that name; one that was heard in terms that lead nowhere near; one that was heard in this very term.
    let spoken = |n, term| Ancestry::none().spoken_in(TermId::new(term, n));
    all.push(Hello { id: VmId::new(7).unwrap(), nonce: owner, ..good.clone() });
    all.push(Hello { nonce: owner, ancestry: spoken(stranger, Term::FIRST), ..good.clone() });
    for term in [Term::FIRST, second] {
        all.push(Hello { nonce: stranger, term, ancestry: spoken(stranger, term), ..good.clone() });
    }
    for (at, hello) in (1000..).zip(&mut all) {
        hello.session = Session::new(at).unwrap();
    }
    all
}

fn replaced(shape: &[u8], from: &str, to: &str) -> Vec<u8> {
    let shape = String::from_utf8(shape.to_vec()).unwrap();
    assert!(shape.contains(from), "{shape}");
    shape.replace(from, to).into_bytes()
}

#[test]
fn a_backup_that_refused_everything_takes_over_as_if_nothing_had_been_said() {
    with_hosts(async |pair| {
        let (mut primary, mut backup) = pair.protected().await;
        let client = pair.client(4).await;
        for hello in refusable(known(&pair)) {
            let said = format!("{hello:?}");
            let answer = ask(&pair, hello);
            assert!(matches!(answer, ToPrimary::Refuse(_)), "{answer:?} to {said}");
        }
        let say = |encode: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            encode(&mut bytes);
            connect(&pair).write_all(&bytes).unwrap();
        };
        let term = Term::FIRST;
        let goodbye = Goodbye { term, epoch: Epoch::FIRST, why: GoodbyeWhy::Stopped };
        say(&|out| _ = Attach { session: Session::new(1000).unwrap() }.encode(out));
        say(&|out| _ = Attach { session: Session::new(u64::MAX).unwrap() }.encode(out));
        say(&|out| _ = goodbye.encode(out));
        let heartbeat = Heartbeat { term, seq: 1, sent: Moment(1), engine_age: None };
        say(&|out| _ = heartbeat.encode(out));

        replies_more(&client, 100).await;
        for daemon in [&mut primary, &mut backup] {
            let status = daemon.wait_for(Protection::Protected, patience()).await.unwrap();
            assert_eq!((status.term, status.reason.as_str()), (1, ""));
        }
        assert_eq!(pair.logged("backup").matches(": session ").count(), 1, "no session was lost");
        pair.dies(&mut primary).await;
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        replies_more(&client, 100).await;
        lost_nothing(client, 4).await;
    });
}
