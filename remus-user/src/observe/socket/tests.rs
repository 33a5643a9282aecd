use remus_abi::Term;

use super::*;
use crate::observe::{running, status::Role};

/// A run directory of this test alone, gone at its end; its path is longer than a socket's address.
struct RunDir(PathBuf);

impl RunDir {
    fn new(test: &str) -> Self {
        let name = format!("remus-test-{}-{test}-{}", std::process::id(), "x".repeat(100));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: {e}", self.0.display());
        }
    }
}

fn demo() -> VmName {
    VmName::new("demo").unwrap()
}

/// Runs `test` while a VM named demo answers under `run_dir`.
fn with_server(run_dir: &RunDir, test: impl FnOnce(&Shared)) {
    let directory = VmDir::claim(&run_dir.0, &demo()).unwrap();
    let socket = StatusSocket::bind(&directory).unwrap();
    let shared = Shared::new(&VmName::new("demo").unwrap(), Role::Primary, Term::FIRST);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime
        .spawn(socket.serve(Arc::clone(&shared), |asked| asked.answer(Err("not now".to_owned()))));
    test(&shared);
    assert!(!server.is_finished());
}

/// Sends raw bytes, and returns the answer.
fn raw(run_dir: &RunDir, request: &[u8]) -> String {
    let directory = open_directory(&run_dir.0.join("demo")).unwrap();
    let mut stream = UnixStream::connect(below(&directory, STATUS_SOCKET)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The server may have hung up on the rest of an overlong request.
    let sent = stream.write_all(request).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => answer,
        Err(e) => format!("{e} after {sent:?}: {answer}"),
    }
}

#[test]
fn a_running_vm_answers_and_a_stopped_one_is_named() {
    let run_dir = RunDir::new("answers");
    with_server(&run_dir, |shared| {
        shared.sealed(
            remus_abi::Stamp::new(Term::FIRST, Epoch::FIRST),
            &crate::observe::PauseParts([5, 0, 0, 0, 0, 0]),
            6,
        );
        let status = query(&run_dir.0, &demo(), None).unwrap();
        assert_eq!((status.vm.as_str(), status.epochs.captured), ("demo", 1));
        assert_eq!(query(&run_dir.0, &demo(), Some(Epoch::FIRST)).unwrap().pause_us.count, 0);
        assert_eq!(running(&run_dir.0).unwrap(), [demo()]);
        let mode =
            |name: &str| fs::metadata(run_dir.0.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("demo"), mode("demo/status.sock")), (0o700, 0o600));
    });
    assert_eq!(running(&run_dir.0).unwrap(), []);
    let error = query(&run_dir.0, &demo(), None).unwrap_err().to_string();
    assert!(error.starts_with("no VM demo runs here"), "{error}");
}

#[test]
fn a_second_instance_is_refused_and_a_dead_ones_socket_is_replaced() {
    let run_dir = RunDir::new("second");
    let first = VmDir::claim(&run_dir.0, &demo()).unwrap();
    let error = VmDir::claim(&run_dir.0, &demo()).unwrap_err().to_string();
    let expected = format!("VM demo already runs here (process {})", std::process::id());
    assert!(error.starts_with(&expected), "{error}");

    // As a killed process leaves it: the socket file without a listener, the lock free.
    let socket = StatusSocket::bind(&first).unwrap();
    let stale = run_dir.0.join("demo/stale");
    fs::hard_link(run_dir.0.join("demo/status.sock"), &stale).unwrap();
    drop(socket);
    // Given up with something still in it, the directory stays.
    drop(first);
    fs::rename(&stale, run_dir.0.join("demo/status.sock")).unwrap();
    let error = query(&run_dir.0, &demo(), None).unwrap_err().to_string();
    assert!(error.contains("does not run"), "{error}");
    with_server(&run_dir, |_| {
        query(&run_dir.0, &demo(), None).unwrap();
    });
}

#[test]
fn a_vm_that_ends_leaves_no_directory() {
    let run_dir = RunDir::new("ends");
    let directory = VmDir::claim(&run_dir.0, &demo()).unwrap();
    let socket = StatusSocket::bind(&directory).unwrap();
    drop(socket);
    drop(directory);
    assert!(!run_dir.0.join("demo").exists());
    VmDir::claim(&run_dir.0, &demo()).unwrap();
}

#[test]
fn of_many_that_claim_at_once_one_has_it() {
    let run_dir = RunDir::new("race");
    let holders = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                use std::sync::atomic::Ordering::SeqCst;
                for _ in 0..200 {
                    if let Ok(directory) = VmDir::claim(&run_dir.0, &demo()) {
                        assert_eq!(holders.fetch_add(1, SeqCst), 0);
                        std::thread::yield_now();
                        holders.fetch_sub(1, SeqCst);
                        drop(directory);
                    }
                }
            });
        }
    });
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let run_dir = RunDir::new("open");
    fs::create_dir(&run_dir.0).unwrap();
    fs::set_permissions(&run_dir.0, fs::Permissions::from_mode(0o777)).unwrap();
    let error = VmDir::claim(&run_dir.0, &demo()).unwrap_err().to_string();
    assert!(error.contains("is writable by others"), "{error}");
}

#[test]
fn requests_that_are_not_understood_get_an_error_and_the_next_an_answer() {
    let run_dir = RunDir::new("requests");
    with_server(&run_dir, |_| {
        for bad in [
            &b"\n"[..],
            b"status",
            b"status since x\n",
            b"status since -1\n",
            b"\xff\n",
            &[b'a'; 500],
        ] {
            let answer = raw(&run_dir, bad);
            let refused = answer.starts_with("{\"error\":") || answer.contains("reset by peer");
            assert!(refused, "{bad:?}: {answer}");
        }
        assert!(raw(&run_dir, b"status\n").starts_with("{\"vm\":\"demo\""));
    });
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out_for_long() {
    let run_dir = RunDir::new("silent");
    with_server(&run_dir, |_| {
        let directory = open_directory(&run_dir.0.join("demo")).unwrap();
        let connect = || UnixStream::connect(below(&directory, STATUS_SOCKET)).unwrap();
        let silent: Vec<_> = (0..CLIENTS_MAX).map(|_| connect()).collect();
        std::thread::sleep(EXCHANGE_TIMEOUT + Duration::from_millis(500));
        query(&run_dir.0, &demo(), None).unwrap();
        drop(silent);
    });
}
