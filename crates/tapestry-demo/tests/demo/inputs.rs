//! The cache of inputs, with package clients that are scripts of the test.

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tapestry_demo::inputs::catalogue::{self, Client, Contents, Input};
use tapestry_demo::inputs::{ArchiveError, InputCache, InputError, InputStep};
use tapestry_demo::members::demo_members;

const CONTENT: &[u8] = b"the text of the package";

fn sha256(content: &[u8]) -> &'static str {
    Box::leak(hex::encode(Sha256::digest(content)).into_boxed_str())
}

/// A gzipped tar archive with these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// A folder with a package, an `npm` that delivers it and counts its calls, and an empty cache.
struct Scene {
    folder: tempfile::TempDir,
    package: Vec<u8>,
    input: Input,
}

impl Scene {
    fn new() -> Self {
        let package = archive(&[("package/other.txt", b"unused"), ("package/data/text.txt", CONTENT)]);
        let contents: &'static [(&str, &str)] = vec![("package/data/text.txt", sha256(CONTENT))].leak();
        let input = Input {
            id: "text",
            client: Client::Npm,
            package: "@some/text",
            version: "1.0.0",
            file: "some-text-1.0.0.tgz",
            size_bytes: package.len() as u64,
            sha256: sha256(&package),
            contents: Contents::Files(contents),
            source: None,
        };
        let scene = Self { folder: tempfile::tempdir().unwrap(), package, input };
        fs::create_dir(scene.path("bin")).unwrap();
        scene.deliver(&scene.package);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn packages(&self) -> PathBuf {
        self.path("cache/packages")
    }

    /// Lets `npm` deliver `content`.
    fn deliver(&self, content: &[u8]) {
        fs::write(self.path("delivery"), content).unwrap();
        let delivery = self.path("delivery");
        self.npm(&format!("/bin/cp '{}' \"$5/some-text-1.0.0.tgz\"", delivery.display()));
    }

    /// Makes `npm` a script that counts its calls, finds the value of `--pack-destination`, and then does `action`.
    fn npm(&self, action: &str) {
        let calls = self.path("calls");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> '{}'\nwhile [ \"$1\" != --pack-destination ]; do shift; done\nset -- 1 2 3 4 \"$2\"\n{action}\n",
            calls.display()
        );
        // Copied by a process of its own: a file that this process has just written may still be open in a child that
        // another test is starting at this moment, and then cannot be run ("text file busy").
        let (text, path) = (self.path("npm.txt"), self.path("bin/npm"));
        fs::write(&text, script).unwrap();
        fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
        let copied = Command::new("/bin/cp").arg("-f").args([&text, &path]).status().unwrap();
        assert!(copied.success());
    }

    fn num_calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |calls| calls.lines().count())
    }

    fn cache(&self) -> InputCache {
        InputCache::at(self.path("cache"), self.path("bin").into_os_string())
    }

    fn ready(&self) -> Result<PathBuf, InputError> {
        self.cache().ready_one(&self.input, &mut |_| ())
    }

    /// Nothing but whole files under their names.
    fn assert_tidy(&self) {
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        let left: Vec<String> = names(&self.path("cache")).into_iter().filter(|name| name.contains("ing-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn an_input_is_fetched_once_and_then_only_checked() {
    let scene = Scene::new();
    let mut seen = Vec::new();
    let folder = scene.cache().ready_one(&scene.input, &mut |p| seen.push(p.step)).unwrap();
    assert_eq!(fs::read(folder.join("text.txt")).unwrap(), CONTENT);
    assert!(!folder.join("other.txt").exists());
    assert_eq!((seen.first(), seen.last()), (Some(&InputStep::Fetching), Some(&InputStep::Ready)));
    let mut seen = 0;
    let again = scene.cache().ready_one(&scene.input, &mut |p| {
        assert_eq!((p.step, p.bytes), (InputStep::Ready, p.total_bytes));
        seen += 1;
    });
    assert_eq!((again.unwrap(), seen), (folder, 1));
    assert_eq!(scene.num_calls(), 1);
    let arguments = fs::read_to_string(scene.path("calls")).unwrap();
    assert!(arguments.contains("pack @some/text@1.0.0 --ignore-scripts"), "{arguments}");
    scene.assert_tidy();
}

#[test]
fn a_corrupted_download_is_not_kept_and_the_next_run_fetches_again() {
    let scene = Scene::new();
    let mut corrupted = scene.package.clone();
    corrupted[40] ^= 1;
    scene.deliver(&corrupted);
    let error = scene.ready().unwrap_err();
    assert!(matches!(error, InputError::WrongPackage { .. }), "{error}");
    let text = error.to_string();
    let expected = scene.packages().join("some-text-1.0.0.tgz").display().to_string();
    assert!(text.contains(&expected) && text.contains(scene.input.sha256) && text.contains("--quick"), "{text}");
    assert!(!scene.packages().join("some-text-1.0.0.tgz").exists());
    scene.assert_tidy();
    scene.deliver(&scene.package);
    assert!(scene.ready().is_ok());
}

#[test]
fn a_truncated_download_is_not_kept() {
    let scene = Scene::new();
    scene.deliver(&scene.package[..scene.package.len() / 2]);
    assert!(matches!(scene.ready(), Err(InputError::WrongPackage { .. })));
}

#[test]
fn without_network_the_message_says_what_to_do() {
    let scene = Scene::new();
    scene.npm("echo 'network is unreachable' >&2; exit 7");
    let error = scene.ready().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, InputError::FetchFailed { program: "npm", .. }));
    for needed in [
        "network is unreachable",
        "some-text-1.0.0.tgz",
        scene.input.sha256,
        "npm pack @some/text@1.0.0",
        "cargo demo -- --quick",
    ] {
        assert!(text.contains(needed), "{needed} is not in {text}");
    }
    scene.assert_tidy();
}

#[test]
fn a_client_that_delivers_nothing_has_failed() {
    let scene = Scene::new();
    scene.npm("exit 0");
    assert!(matches!(scene.ready(), Err(InputError::FetchFailed { .. })));
}

#[test]
fn relative_folders_work_although_the_client_runs_elsewhere() {
    let scene = Scene::new();
    let from_here = |path: PathBuf| {
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        up.join(path.strip_prefix("/").unwrap())
    };
    let cache = InputCache::at(from_here(scene.path("cache")), from_here(scene.path("bin")).into_os_string());
    assert_eq!(fs::read(cache.ready_one(&scene.input, &mut |_| ()).unwrap().join("text.txt")).unwrap(), CONTENT);
}

#[test]
fn a_missing_client_is_named() {
    let scene = Scene::new();
    fs::remove_file(scene.path("bin/npm")).unwrap();
    let error = scene.ready().unwrap_err();
    assert!(matches!(error, InputError::ProgramMissing { program: "npm", .. }));
    assert!(error.to_string().contains("`npm` was not found"), "{error}");
}

#[test]
fn a_package_put_there_by_hand_needs_no_client() {
    let scene = Scene::new();
    fs::create_dir_all(scene.packages()).unwrap();
    fs::write(scene.packages().join("some-text-1.0.0.tgz"), &scene.package).unwrap();
    fs::remove_file(scene.path("bin/npm")).unwrap();
    assert_eq!(fs::read(scene.ready().unwrap().join("text.txt")).unwrap(), CONTENT);
}

#[test]
fn a_wrong_package_is_moved_aside_and_damaged_contents_come_from_the_package() {
    let scene = Scene::new();
    fs::create_dir_all(scene.packages()).unwrap();
    fs::write(scene.packages().join("some-text-1.0.0.tgz"), b"something else").unwrap();
    let folder = scene.ready().unwrap();
    assert_eq!(fs::read(scene.packages().join("some-text-1.0.0.tgz.rejected")).unwrap(), b"something else");
    fs::write(folder.join("text.txt"), b"damaged").unwrap();
    assert_eq!(fs::read(scene.ready().unwrap().join("text.txt")).unwrap(), CONTENT);
    assert_eq!(scene.num_calls(), 1);
}

#[test]
fn a_package_without_its_file_or_with_another_is_refused() {
    for files in [vec![("package/data/else.txt", CONTENT)], vec![("package/data/text.txt", b"another".as_slice())]] {
        let mut scene = Scene::new();
        scene.package = archive(&files);
        scene.input.sha256 = sha256(&scene.package);
        scene.deliver(&scene.package);
        assert!(matches!(scene.ready(), Err(InputError::Archive { .. })));
        scene.assert_tidy();
        assert!(!scene.path("cache/contents").exists());
    }
}

#[test]
fn a_folder_of_files_is_checked_as_a_whole_and_names_cannot_escape() {
    let listing = |files: &[(&str, &[u8])]| {
        let lines: String = files.iter().map(|(name, content)| format!("{}  {name}\n", sha256(content))).collect();
        sha256(lines.as_bytes())
    };
    let mut scene = Scene::new();
    let good: [(&str, &[u8]); 3] = [("data/b.txt", b"B"), ("data/a.txt", b"A"), ("data/c.json", b"C")];
    let listing_sha256 = listing(&[("a.txt", b"A"), ("b.txt", b"B")]);
    scene.input.contents = Contents::Folder { prefix: "data/", suffix: ".txt", listing_sha256 };
    let deliver = |scene: &mut Scene, files: &[(&str, &[u8])]| {
        scene.package = archive(files);
        scene.input.sha256 = sha256(&scene.package);
        scene.deliver(&scene.package);
        scene.ready()
    };
    let folder = deliver(&mut scene, &good).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    assert!(scene.ready().is_ok());
    fs::write(folder.join("more.txt"), b"put there").unwrap();
    scene.ready().unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "what does not belong there is gone");
    assert!(matches!(deliver(&mut scene, &good[..1]), Err(InputError::Archive { .. })));
    for name in ["data/sub/a.txt", "data/.a.txt", "data/a b.txt"] {
        let refused = deliver(&mut scene, &[(name, b"A")]);
        let Err(InputError::Archive { source: ArchiveError::UnexpectedFile { .. }, .. }) = refused else {
            panic!("{name}: {refused:?}");
        };
    }
}

#[test]
fn the_catalogue_is_consistent_and_three_members_need_no_more_than_theirs() {
    let mut ids: Vec<&str> = catalogue::ALL.iter().map(|input| input.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), catalogue::ALL.len());
    for input in catalogue::ALL {
        let mut digests = vec![input.sha256];
        match input.contents {
            Contents::Files(files) => {
                digests.extend(files.iter().map(|(_, sha256)| *sha256));
                let mut names: Vec<_> = files.iter().map(|(path, _)| Path::new(path).file_name()).collect();
                names.sort();
                names.dedup();
                assert_eq!(names.len(), files.len(), "{}: files are kept under their last name", input.id);
            }
            Contents::Folder { listing_sha256, .. } => digests.push(listing_sha256),
        }
        assert!(digests.iter().all(|d| d.len() == 64 && hex::decode(d).is_ok()), "{}", input.id);
    }
    let needed = |n| catalogue::texts_of(&demo_members(n, true).unwrap()).len();
    assert_eq!((needed(3), needed(4), needed(5)), (4, 6, 7));
}
