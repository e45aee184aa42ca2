use crate::blobs::files_in;
use crate::faulty::SmallDisk;
use std::fs;
use std::path::Path;
use tapestry_core::{Digest, Document, PublicKey, SecretKey, Signed, Timestamp};
use tapestry_ledger::{ChainError, MAX_ENTRY_BYTES};
use tapestry_store::{ExportedLog, LogError, LogStore, RoleLog, StoreError, migrate, verify_log, write_export};
use zeroize::Zeroizing;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([n; 32]))
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(ms)
}

#[tokio::test]
async fn a_log_is_what_was_appended_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, entries) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    assert!(entries.is_empty());
    for i in 1..=3 {
        let entry = log.append(at(i * 10), format!("event {i}")).await.unwrap();
        assert_eq!((entry.seq, entry.at), (i, at(i * 10)));
    }
    assert!(dir.path().join("00000000000000000003.commit").exists());
    let (again, entries) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    assert_eq!(entries.iter().map(|e| e.event.as_str()).collect::<Vec<_>>(), ["event 1", "event 2", "event 3"]);
    assert_eq!(again.chain(), log.chain());
    let (chain, values) = verify_log::<serde_json::Value>(dir.path(), key(1).public()).await.unwrap();
    assert_eq!((chain.root(), values.len()), (log.chain().root(), 3));
}

#[tokio::test]
async fn verifying_changes_nothing_and_needs_the_right_key() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap();
    log.append(at(1), 7).await.unwrap();
    fs::write(dir.path().join("00000000000000000002.commit#1"), b"{").unwrap();
    verify_log::<u32>(dir.path(), key(1).public()).await.unwrap();
    assert_eq!(files_in(dir.path()).len(), 2, "the partial file of a running writer is left alone");
    assert!(matches!(verify_log::<u32>(dir.path(), key(2).public()).await, Err(LogError::Chain { .. })));
    let absent = dir.path().join("absent");
    assert!(verify_log::<u32>(&absent, key(1).public()).await.is_err());
    assert!(!absent.exists());
}

#[tokio::test]
async fn a_torn_entry_of_a_crash_is_removed_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap();
    log.append(at(1), 1).await.unwrap();
    fs::write(dir.path().join("00000000000000000002.commit#1"), b"{\"docu").unwrap();
    let (mut log, entries) = RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap();
    assert_eq!((entries.len(), files_in(dir.path()).len()), (1, 1));
    log.append(at(2), 2).await.unwrap();
    assert_eq!(RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap().1.len(), 2);
}

#[tokio::test]
async fn deleted_changed_and_foreign_entries_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap();
    for i in 1..=4 {
        log.append(at(1), i).await.unwrap();
    }
    let file = |n: u32| dir.path().join(format!("{n:020}.commit"));
    let open = || RoleLog::<u32>::open(dir.path(), key(1));

    let second = fs::read(file(2)).unwrap();
    fs::remove_file(file(2)).unwrap();
    assert!(matches!(open().await, Err(LogError::Gap { missing: 2, next: 3, .. })));
    fs::write(file(2), fs::read(file(3)).unwrap()).unwrap();
    assert!(matches!(open().await, Err(LogError::Chain { .. })));
    fs::write(file(2), String::from_utf8(second.clone()).unwrap().replace("\"event\":2", "\"event\":9")).unwrap();
    assert!(matches!(open().await, Err(LogError::Chain { .. })));
    fs::write(file(2), &second).unwrap();
    assert_eq!(open().await.unwrap().1.len(), 4);

    fs::write(dir.path().join("5.commit"), b"{}").unwrap();
    let message = open().await.unwrap_err().to_string();
    assert!(message.contains("5.commit") && message.contains("move it away"), "{message}");
    fs::remove_file(dir.path().join("5.commit")).unwrap();
    fs::File::create(file(5)).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(open().await, Err(LogError::Store(StoreError::Oversized { .. }))));
}

#[tokio::test]
async fn entries_that_nobody_could_read_back_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    let error = log.append(at(1), "x".repeat(MAX_ENTRY_BYTES)).await.unwrap_err();
    assert!(matches!(error, LogError::Chain { source: ChainError::TooLong { seq: 1, .. }, .. }));
    assert!(files_in(dir.path()).is_empty());
    log.append(at(1), "short".into()).await.unwrap();
}

#[tokio::test]
async fn a_deposed_writer_is_told_and_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, _) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    old.append(at(1), "old".into()).await.unwrap();
    let (mut new, _) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    new.append(at(2), "new".into()).await.unwrap();
    for _ in 0..2 {
        let error = old.append(at(3), "late".into()).await.unwrap_err();
        assert!(matches!(error, LogError::Taken { seq: 2, .. }), "{error}");
    }
    let (_, entries) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    assert_eq!(entries.last().unwrap().event, "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_rivals_for_one_number_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    for store in [LogStore::open(dir.path()).unwrap(), LogStore::in_memory()] {
        for seq in 1..=20 {
            let rivals = (0..8).map(|i| tokio::spawn(append_own(store.clone(), seq, i)));
            let mut winners = vec![];
            for rival in rivals.collect::<Vec<_>>() {
                winners.extend(rival.await.unwrap());
            }
            assert_eq!(winners.len(), 1, "entry {seq}");
            assert_eq!(store.read(seq).await.unwrap().unwrap(), winners[0].to_string());
        }
        assert_eq!(store.commits().await.unwrap().len(), 20);
    }
    assert_eq!(files_in(dir.path()).len(), 20);
}

/// The rival's number, if it won.
async fn append_own(store: LogStore, seq: u64, rival: u32) -> Option<u32> {
    match store.append(seq, rival.to_string().into()).await {
        Ok(()) => Some(rival),
        Err(LogError::Taken { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_full_disk_stops_the_log_where_it_stands_and_a_retry_works() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(dir.path(), 1 << 20);
    let store = LogStore::on(disk.clone(), "the small disk");
    let (mut log, _) = RoleLog::<u32>::open_on(store.clone(), key(1)).await.unwrap();
    log.append(at(1), 1).await.unwrap();
    let root = log.chain().root();
    disk.set_free(10);
    let error = log.append(at(2), 2).await.unwrap_err();
    assert!(matches!(error, LogError::Store(StoreError::DiskFull { .. })), "{error:?}");
    assert_eq!(log.chain().root(), root);
    assert_eq!(RoleLog::<u32>::open_on(store.clone(), key(1)).await.unwrap().1.len(), 1);
    disk.set_free(1 << 20);
    log.append(at(3), 2).await.unwrap();
    assert_eq!(RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap().1.len(), 2);
}

/// What key 1 logs, in commits of one, three and 300 entries.
async fn three_commits(folder: &Path) -> RoleLog<String> {
    let (mut log, _) = RoleLog::<String>::open(folder, key(1)).await.unwrap();
    for (n, count) in [1_u64, 3, 300].into_iter().enumerate() {
        let events = (0..count).map(|i| (format!("event {n}.{i}"), None)).collect();
        assert_eq!(log.append_all(at(n as u64), events).await.unwrap().len() as u64, count);
    }
    log
}

#[tokio::test]
async fn many_events_are_one_commit_and_no_events_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = three_commits(dir.path()).await;
    assert!(log.append_all(at(9), vec![]).await.unwrap().is_empty());
    let index = log.index().clone();
    assert_eq!((index.size(), files_in(dir.path()).len()), (304, 3));
    let range = index.entries(2..6).await.unwrap().unwrap();
    let shown: Vec<_> = range.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    for (entry, expected) in shown.iter().zip(["event 1.1", "event 1.2", "event 2.0", "event 2.1"]) {
        assert!(entry.contains(expected), "{entry}");
    }
    assert!(index.entries(300..305).await.unwrap().is_none());
    log.append(at(9), "one more".into()).await.unwrap();
    assert_eq!(index.size(), 305, "an index sees what is appended later");
}

#[tokio::test]
async fn an_export_is_the_log_and_any_changed_missing_or_added_byte_of_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let log = three_commits(&dir.path().join("log")).await;
    let (index, out) = (log.index(), dir.path().join("export"));
    write_export(index, &index.checkpoint().unwrap(), &out).await.unwrap();
    let exported = ExportedLog::read(&out, None).unwrap();
    assert_eq!((exported.chain.num_entries(), exported.chain.root()), (304, log.chain().root()));
    assert_eq!(exported.entries().count(), 304);
    assert!(ExportedLog::read(&out, Some(key(2).public())).is_err(), "the log of another");
    assert!(write_export(index, &index.checkpoint().unwrap(), &out).await.is_err(), "nothing is overwritten");

    // Of each file some bytes, and all of the checkpoint.
    let mut num_changes = 0;
    for file in files_in(&out) {
        let content = fs::read(&file).unwrap();
        let step = if file.ends_with("checkpoint") { 1 } else { content.len() / 40 + 1 };
        for at in (0..content.len()).step_by(step) {
            let mut changed = content.clone();
            changed[at] ^= 4;
            fs::write(&file, changed).unwrap();
            assert!(ExportedLog::read(&out, None).is_err(), "{} byte {at}", file.display());
            num_changes += 1;
        }
        fs::write(&file, &content[..content.len() - 1]).unwrap();
        assert!(ExportedLog::read(&out, None).is_err(), "{} cut", file.display());
        fs::remove_file(&file).unwrap();
        assert!(ExportedLog::read(&out, None).is_err(), "{} gone", file.display());
        fs::write(&file, content).unwrap();
    }
    assert!(num_changes > 200, "{num_changes}");
    fs::write(out.join("tile/0/001.p/1"), [0; 32]).unwrap();
    assert!(ExportedLog::read(&out, None).is_err(), "a file too many");
}

/// An entry of the form before this one, as the software of then wrote it.
#[derive(Debug, serde::Serialize)]
struct Older {
    seq: u64,
    previous: Digest,
    writer: PublicKey,
    at: Timestamp,
    event: String,
}

impl Document for Older {
    const DOMAIN: &'static str = "log-entry/2";
}

fn write_older_log(folder: &Path, count: u64) {
    fs::create_dir_all(folder).unwrap();
    let writer = key(1).public();
    let mut previous = Digest::of(format!("tapestry:log/1\n{writer}").as_bytes());
    for seq in 1..=count {
        let entry = Older { seq, previous, writer, at: at(seq * 10), event: format!("event {seq}") };
        let signed = Signed::by(entry, &key(1)).unwrap();
        previous = signed.digest().unwrap();
        let json = serde_json::json!({ "document": signed.document, "signatures": signed.signatures });
        fs::write(folder.join(format!("{seq:020}.json")), json.to_string()).unwrap();
    }
}

#[tokio::test]
async fn a_log_of_the_older_form_is_taken_over_entry_by_entry() {
    let dir = tempfile::tempdir().unwrap();
    write_older_log(dir.path(), 600);
    let open = || RoleLog::<String>::open(dir.path(), key(1));
    let error = open().await.unwrap_err().to_string();
    assert!(error.contains("tapestry log migrate") && error.contains("600"), "{error}");

    let store = LogStore::open(dir.path()).unwrap();
    assert!(matches!(migrate(&store, &key(2)).await, Err(LogError::CannotMigrate { .. })), "another key");
    let changed = dir.path().join("00000000000000000007.json");
    let honest = fs::read_to_string(&changed).unwrap();
    fs::write(&changed, honest.replace("event 7", "event 8")).unwrap();
    assert!(matches!(migrate(&store, &key(1)).await, Err(LogError::CannotMigrate { .. })), "a changed entry");
    fs::write(&changed, honest).unwrap();

    assert_eq!(migrate(&store, &key(1)).await.unwrap(), 600);
    let (log, entries) = open().await.unwrap();
    assert_eq!((entries.len(), entries[6].event.as_str(), entries[6].at), (600, "event 7", at(70)));
    assert!(entries.iter().all(|entry| entry.was.is_some()));
    assert_eq!(migrate(&store, &key(1)).await.unwrap(), 0, "there is nothing left to do");

    // As after a crash in the middle: what is there stays, the rest is done.
    fs::remove_file(dir.path().join(format!("{:020}.commit", 513))).unwrap();
    assert!(matches!(open().await, Err(LogError::OlderForm { num_left: 88, .. })));
    assert_eq!(migrate(&store, &key(1)).await.unwrap(), 88);
    assert_eq!(open().await.unwrap().0.chain().root(), log.chain().root());
}
