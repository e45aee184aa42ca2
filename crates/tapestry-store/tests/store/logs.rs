use crate::blobs::files_in;
use crate::faulty::SmallDisk;
use bytes::Bytes;
use std::fs;
use tapestry_core::{SecretKey, Timestamp};
use tapestry_ledger::MAX_ENTRY_BYTES;
use tapestry_store::{LogError, LogStore, RoleLog, StoreError, verify_log};
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
    assert!(dir.path().join("00000000000000000003.json").exists());
    let (again, entries) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    assert_eq!(entries.iter().map(|e| e.event.as_str()).collect::<Vec<_>>(), ["event 1", "event 2", "event 3"]);
    assert_eq!(again.chain(), log.chain());
    let (chain, values) = verify_log::<serde_json::Value>(dir.path(), key(1).public()).await.unwrap();
    assert_eq!((chain.head(), values.len()), (log.chain().head(), 3));
}

#[tokio::test]
async fn verifying_changes_nothing_and_needs_the_right_key() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap();
    log.append(at(1), 7).await.unwrap();
    fs::write(dir.path().join("00000000000000000002.json#1"), b"{").unwrap();
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
    fs::write(dir.path().join("00000000000000000002.json#1"), b"{\"docu").unwrap();
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
    let file = |n: u32| dir.path().join(format!("{n:020}.json"));
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

    fs::write(dir.path().join("5.json"), b"{}").unwrap();
    let message = open().await.unwrap_err().to_string();
    assert!(message.contains("5.json") && message.contains("move it away"), "{message}");
    fs::remove_file(dir.path().join("5.json")).unwrap();
    fs::File::create(file(5)).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(open().await, Err(LogError::Store(StoreError::Oversized { .. }))));
}

#[tokio::test]
async fn entries_that_nobody_could_read_back_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = RoleLog::<String>::open(dir.path(), key(1)).await.unwrap();
    let error = log.append(at(1), "x".repeat(MAX_ENTRY_BYTES)).await.unwrap_err();
    assert!(matches!(error, LogError::TooLong { seq: 1, .. }));
    let store = LogStore::open(dir.path()).unwrap();
    assert!(matches!(store.append(0, Bytes::new()).await, Err(LogError::NotNext { .. })));
    assert!(matches!(store.append(2, Bytes::new()).await, Err(LogError::NotNext { seq: 2, .. })));
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
        assert_eq!(store.read_all().await.unwrap().len(), 20);
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
    let head = log.chain().head();
    disk.set_free(10);
    let error = log.append(at(2), 2).await.unwrap_err();
    assert!(matches!(error, LogError::Store(StoreError::DiskFull { .. })), "{error:?}");
    assert_eq!(log.chain().head(), head);
    assert_eq!(RoleLog::<u32>::open_on(store.clone(), key(1)).await.unwrap().1.len(), 1);
    disk.set_free(1 << 20);
    log.append(at(3), 2).await.unwrap();
    assert_eq!(RoleLog::<u32>::open(dir.path(), key(1)).await.unwrap().1.len(), 2);
}
