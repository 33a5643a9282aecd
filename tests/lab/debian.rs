//! A whole Debian under our VMM, as `cargo xtask guest debian` makes it: its kernel, systemd, and redis-server, nginx
//! and PostgreSQL as packaged, on a read-only disk with memory laid over it.

use std::{
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use remus::observe::status::Protection;
use rig::{
    guest::Guest,
    host::Death,
    http::{Browser, Page},
    pair::{Pair, lost_nothing, patience, replies_more, with_hosts_for},
    psql::Session,
    remus::{Machine, Options, Software, Timing},
    topology::GUEST,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{in_the_lab, linux::console};

const WEB: SocketAddrV4 = SocketAddrV4::new(*GUEST.ip(), 80);
const SQL: SocketAddrV4 = SocketAddrV4::new(*GUEST.ip(), 5432);
/// From the start of `remus` until all three services answer. 183 s were seen.
const BOOT: Duration = Duration::from_secs(280);
/// Until the backup has all of its memory.
const SYNC: Duration = Duration::from_secs(240);
const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
const BETWEEN_REQUESTS: Duration = Duration::from_millis(1);
/// What no console of a healthy guest has, in small letters.
const BAD: [&str; 12] = [
    "lockup",
    "rcu:",
    "stall",
    "unstable",
    "hung",
    "call trace",
    "bug:",
    "oops",
    "panic",
    "i/o error",
    "virtio",
    "squashfs error",
];

fn debian() -> Options {
    Options {
        machine: Machine { vcpus: 1, memory_mib: 384 },
        guest: Software::Debian,
        timing: Timing::of_this_machine(),
        ..Options::default()
    }
}

/// Connects to a service of the guest's as soon as it answers.
async fn answers<T, E>(
    pair: &Pair,
    begun: Instant,
    service: &str,
    connect: impl AsyncFn() -> Result<T, E>,
) -> T {
    loop {
        if let Ok(connection) = connect().await {
            eprintln!("{service} after {:.1} s", begun.elapsed().as_secs_f64());
            return connection;
        }
        assert!(begun.elapsed() < BOOT, "{service} does not answer: {}", pair.logged("primary"));
        sleep(Duration::from_millis(500)).await;
    }
}

async fn nginx(pair: &Pair, begun: Instant) -> Browser {
    let netns = pair.topology.client.netns();
    // Its unit tests the configuration first, which takes connections too, and drops them.
    let served = async || {
        let mut web = Browser::open(netns, WEB).await?;
        web.get("/").await.map(|_| web)
    };
    answers(pair, begun, "nginx", served).await
}

async fn postgresql(pair: &Pair, begun: Instant) -> Session {
    let (netns, log) = (pair.topology.client.netns(), pair.log("psql"));
    answers(pair, begun, "PostgreSQL", async || Session::open(netns, SQL, &log).await).await
}

async fn redis(pair: &Pair, begun: Instant) -> Guest {
    let netns = pair.topology.client.netns();
    let patience = Duration::ZERO;
    answers(pair, begun, "redis-server", async || Guest::wait(netns, GUEST, patience).await).await
}

/// Fails when the guest has said what a healthy one does not say.
fn assert_healthy(pair: &Pair, host: &str) {
    for line in console(pair, host) {
        let small = line.to_lowercase();
        assert!(!BAD.iter().any(|bad| small.contains(bad)), "the guest says on the {host}: {line}");
    }
}

/// One connection that is asked again and again until it is told to stop.
struct Load<T> {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    task: JoinHandle<T>,
}

impl<T: Send + 'static> Load<T> {
    fn start<F>(work: impl FnOnce(Arc<AtomicBool>, Arc<AtomicU64>) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(work(stop.clone(), answers.clone()));
        Self { stop, answers, task }
    }

    /// Waits until it was answered so often more than now.
    async fn answered_more(&self, more: u64) {
        let enough = self.answers.load(Ordering::Relaxed) + more;
        let until = Instant::now() + patience();
        while self.answers.load(Ordering::Relaxed) < enough && !self.task.is_finished() {
            assert!(Instant::now() < until, "fewer than {more} answers more");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets it finish what it is at, and takes what it has made of it; its panic, if it has seen what must not be.
    async fn finish(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Asks for nginx's page: each is the first again, from the same connection, and the next one there.
async fn browse(mut web: Browser, stop: Arc<AtomicBool>, answers: Arc<AtomicU64>) {
    let first = web.get("/").await.unwrap();
    assert!(String::from_utf8_lossy(&first.body).contains("Welcome to nginx!"), "{first:?}");
    let [connection, mut request] = counted(&first);
    while !stop.load(Ordering::Relaxed) {
        let page = web.get("/").await.expect("nginx's connection lives");
        request += 1;
        assert_eq!((page.status, counted(&page)), (200, [connection, request]));
        assert_eq!(page.body, first.body);
        answers.fetch_add(1, Ordering::Relaxed);
        sleep(BETWEEN_REQUESTS).await;
    }
}

/// Which of nginx's connections a page came from, and the how manieth it was there.
fn counted(page: &Page) -> [u64; 2] {
    let field = page.field("X-Connection").expect("nginx counts");
    let (connection, request) = field.split_once(' ').expect("two numbers");
    [connection, request].map(|number| number.parse().unwrap())
}

/// Commits a row a transaction, numbered from 1.
async fn insert(mut sql: Session, stop: Arc<AtomicBool>, answers: Arc<AtomicU64>) -> Session {
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let row = sql.row(&format!("insert into told values ({n}) returning n")).await.unwrap();
        assert_eq!(row, n.to_string());
        answers.store(n, Ordering::Relaxed);
        sleep(BETWEEN_REQUESTS).await;
    }
    sql
}

/// The first line of a file of the guest's.
async fn line_of(sql: &mut Session, path: &str) -> String {
    sql.row(&format!("select split_part(pg_read_file('{path}'), chr(10), 1)")).await.unwrap()
}

#[test]
fn a_whole_debian_boots_from_a_disk_that_it_cannot_write_and_serves() {
    in_the_lab();
    with_hosts_for(debian(), async |pair| {
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        let begun = Instant::now();
        let mut web = nginx(&pair, begun).await;
        assert_eq!(web.get("/").await.unwrap().status, 200);
        let mut sql = postgresql(&pair, begun).await;
        drop(redis(&pair, begun).await);
        let version = sql.row("select version()").await.unwrap();
        assert!(version.starts_with("PostgreSQL 15"), "{version}");
        let kernel = line_of(&mut sql, "/proc/sys/kernel/osrelease").await;
        assert!(kernel.ends_with("-cloud-amd64"), "{kernel}");
        assert_eq!(line_of(&mut sql, CLOCKSOURCE).await, "kvm-clock");
        assert_eq!(line_of(&mut sql, "/proc/1/comm").await, "systemd");
        assert_eq!(line_of(&mut sql, "/sys/block/vda/ro").await, "1");
        let root = "select count(*) from regexp_split_to_table(pg_read_file('/proc/mounts'), chr(10)) as mount \
                    where mount like '% / overlay rw%'";
        assert_eq!(sql.row(root).await.unwrap(), "1");
        let written = "create temp table said (line text); \
                       copy said from program 'df --output=used -m /run/overlay | tail -n 1'; \
                       select trim(line) from said";
        let written_mib: u32 = sql.row(written).await.unwrap().parse().unwrap();
        eprintln!("{written_mib} MiB written since it was started");
        assert!((1..200).contains(&written_mib), "{written_mib} MiB");
        assert_healthy(&pair, "primary");
    });
}

#[test]
fn a_whole_debian_does_not_notice_a_takeover_and_its_servers_keep_their_connections() {
    in_the_lab();
    with_hosts_for(debian(), async |pair| {
        let mut primary = pair.start_primary(&[]);
        primary.wait_for(Protection::Unprotected, patience()).await.unwrap();
        let begun = Instant::now();
        drop(nginx(&pair, begun).await);
        let mut sql = postgresql(&pair, begun).await;
        drop(redis(&pair, begun).await);
        // Nothing keeps a row from being there twice but that it was put there once.
        sql.row("create table told (n bigint not null); select 'made'").await.unwrap();
        let backend = sql.row("select pg_backend_pid()").await.unwrap();
        let mut backup = pair.start_backup();
        primary.wait_for(Protection::Protected, SYNC).await.unwrap();
        eprintln!("protected after {:.1} s", begun.elapsed().as_secs_f64());

        let redis = pair.client(4).await;
        // A web server keeps no connection for long on which nothing is asked.
        let web = Browser::open(pair.topology.client.netns(), WEB).await.unwrap();
        let web = Load::start(|stop, answers| browse(web, stop, answers));
        let sql = Load::start(|stop, answers| insert(sql, stop, answers));
        web.answered_more(20).await;
        sql.answered_more(20).await;
        let off_before = pair.guest().await.clock_off_ms().await.unwrap();
        eprintln!("under load after {:.1} s", begun.elapsed().as_secs_f64());
        let armed = pair.topology.primary.arm().await.unwrap();
        pair.topology.primary.die(Death::Host, &armed, &mut primary.process).await.unwrap();
        backup.wait_for(Protection::Promoted, patience()).await.unwrap();
        eprintln!("taken over after {:.1} s", begun.elapsed().as_secs_f64());
        replies_more(&redis, 100).await;
        web.answered_more(20).await;
        sql.answered_more(20).await;

        lost_nothing(redis, 4).await;
        web.finish().await;
        let told = sql.answers.clone();
        let mut sql = sql.finish().await;
        let told = told.load(Ordering::Relaxed);
        let rows = sql.row("select count(*), count(distinct n), max(n) from told").await.unwrap();
        assert_eq!(rows, format!("{told}|{told}|{told}"));
        eprintln!("{told} rows");
        assert_eq!(sql.row("select pg_backend_pid()").await.unwrap(), backend);
        assert_eq!(pair.seen().frames_of_the_dead, 0);
        let step = pair.guest().await.clock_off_ms().await.unwrap() - off_before;
        assert!(step.abs() < 100.0, "its clock went {step:.0} ms astray");
        assert_eq!(line_of(&mut sql, CLOCKSOURCE).await, "kvm-clock");
        assert_eq!(sql.complaints(), "");
        assert!(sql.close().await.unwrap());

        assert_healthy(&pair, "primary");
        // Its console has warnings, of its kernel's and its services', and what is worse.
        assert_eq!(console(&pair, "backup"), [""; 0]);
    });
}
