//! Fetching from a hub, played by a small HTTP server on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]
#![cfg(feature = "hub")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use kiln_models::checkpoint::Checkpoint;
use kiln_models::hub::{Hub, HubError, HubId, HubOptions, HubProgress};
use kiln_models::registry::ModelError;
use kiln_models::source::open_hub;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "someone/tiny";

/// How the hub answers for a repository other than [`REPO`].
#[derive(Clone, Copy)]
struct Answer {
    status: &'static str,
    headers: &'static str,
}

struct FakeHub {
    endpoint: String,
    /// `METHOD path`, and `token ...` for each request that carried one.
    log: Arc<Mutex<Vec<String>>>,
}

struct Content {
    files: BTreeMap<&'static str, Vec<u8>>,
    others: BTreeMap<&'static str, Answer>,
    /// A file that is announced in full and answered with an error page.
    spoiled: Option<&'static str>,
}

impl FakeHub {
    fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = (Arc::new(content), Arc::clone(&log));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, log) = shared.clone();
                thread::spawn(move || while serve(&stream, &content, &log).is_some() {});
            }
        });
        FakeHub { endpoint, log }
    }

    fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// Answers one request; `None` when the connection is over.
fn serve(mut stream: &TcpStream, content: &Content, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request).ok().filter(|n| *n > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(token) = line.strip_prefix("authorization: Bearer ") {
            log.lock().unwrap().push(format!("token {}", token.trim()));
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    log.lock().unwrap().push(format!("{method} {path}"));
    let (status, headers, body) = answer(method, path, content);
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}

fn answer(method: &str, path: &str, content: &Content) -> (&'static str, String, Vec<u8>) {
    let commit = format!("x-repo-commit: {COMMIT}\r\n");
    let path = path.trim_start_matches('/');
    for (repo, other) in &content.others {
        if path.starts_with(&format!("{repo}/")) || path == format!("api/models/{repo}") {
            return (other.status, other.headers.to_owned(), Vec::new());
        }
    }
    if path == format!("api/models/{REPO}") || path == format!("api/models/{REPO}/revision/main") {
        return ("200 OK", String::new(), b"{}".to_vec());
    }
    let file = ["main", COMMIT]
        .iter()
        .find_map(|r| path.strip_prefix(&format!("{REPO}/resolve/{r}/")));
    match file.and_then(|file| Some((file, content.files.get(file)?))) {
        Some((file, _)) if method == "GET" && content.spoiled == Some(file) => (
            "502 Bad Gateway",
            commit,
            b"<html>an error page</html>".to_vec(),
        ),
        Some((file, body)) => (
            "200 OK",
            format!("{commit}etag: \"etag-of-{file}\"\r\n"),
            body.clone(),
        ),
        None if path.starts_with(REPO) => ("404 Not Found", commit, Vec::new()),
        None => ("404 Not Found", String::new(), Vec::new()),
    }
}

fn safetensors(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[0; 8]);
    file
}

fn files(files: &[(&'static str, Vec<u8>)]) -> Content {
    Content {
        files: files.iter().cloned().collect(),
        others: BTreeMap::new(),
        spoiled: None,
    }
}

fn single() -> Content {
    files(&[
        ("config.json", b"{\"model_type\": \"gpt2\"}".to_vec()),
        ("model.safetensors", safetensors("a")),
        ("tokenizer.json", b"{}".to_vec()),
        ("chat_template.jinja", b"{{ x }}".to_vec()),
        ("pytorch_model.bin", vec![0; 100]),
    ])
}

fn hub(fake: &FakeHub, cache: &TempDir) -> Hub {
    Hub::new(HubOptions {
        endpoint: Some(fake.endpoint.clone()),
        cache: Some(cache.path().to_owned()),
        token: Some("hf_secret".into()),
        retries: Some(0),
        offline: Some(false),
    })
    .unwrap()
}

fn fetch(content: Content, id: &str) -> Result<std::path::PathBuf, HubError> {
    let (fake, cache) = (FakeHub::start(content), TempDir::new().unwrap());
    hub(&fake, &cache).fetch(&HubId::parse(id).unwrap())
}

/// The message of a failed fetch, with the hub's address taken out.
fn message(content: Content, id: &str) -> String {
    let (fake, cache) = (FakeHub::start(content), TempDir::new().unwrap());
    let error = hub(&fake, &cache)
        .fetch(&HubId::parse(id).unwrap())
        .unwrap_err();
    error.to_string().replace(&fake.endpoint, "HUB")
}

#[test]
fn only_what_is_read_is_fetched_and_only_once() {
    let (fake, cache) = (FakeHub::start(single()), TempDir::new().unwrap());
    let heard = Arc::new(Mutex::new(Vec::<HubProgress>::new()));
    let sink = Arc::clone(&heard);
    let hub = hub(&fake, &cache).with_progress(move |p| sink.lock().unwrap().push(p));
    let id = HubId::parse(REPO).unwrap();
    let folder = hub.fetch(&id).unwrap();
    assert!(folder.ends_with(format!("models--someone--tiny/snapshots/{COMMIT}")));
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a"]);
    assert!(folder.join("tokenizer.json").is_file());
    assert!(folder.join("chat_template.jinja").is_file());
    assert!(!folder.join("pytorch_model.bin").exists());

    let requests = fake.requests();
    assert!(
        requests.iter().any(|r| r == "token hf_secret"),
        "{requests:?}"
    );
    assert!(
        !requests
            .iter()
            .any(|r| r.contains("pytorch") || r.contains("vocab")),
        "{requests:?}"
    );
    // All but the first file are asked for by commit.
    assert!(
        requests.contains(&format!("GET /{REPO}/resolve/main/config.json")),
        "{requests:?}"
    );
    assert!(
        requests.contains(&format!("GET /{REPO}/resolve/{COMMIT}/model.safetensors")),
        "{requests:?}"
    );
    let last = heard
        .lock()
        .unwrap()
        .iter()
        .rfind(|p| p.file == "model.safetensors")
        .cloned()
        .unwrap();
    assert_eq!(last.done, last.total);
    assert_eq!(last.total, safetensors("a").len() as u64);

    // Again: one question, whether `main` has moved, and nothing fetched.
    let before = fake.requests().len();
    assert_eq!(hub.fetch(&id).unwrap(), folder);
    let again: Vec<String> = fake
        .requests()
        .split_off(before)
        .into_iter()
        .filter(|r| !r.starts_with("token"))
        .collect();
    assert_eq!(again, [format!("HEAD /{REPO}/resolve/main/config.json")]);
}

#[test]
fn a_model_is_opened_by_its_id() {
    let folder = common::fixture("base");
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let content = files(&[
        ("config.json", read("config.json")),
        ("model.safetensors", read("model.safetensors")),
    ]);
    let (fake, cache) = (FakeHub::start(content), TempDir::new().unwrap());
    let hub = hub(&fake, &cache);
    let loaded = open_hub(&hub, &HubId::parse(REPO).unwrap()).unwrap();
    assert_eq!(loaded.model.family(), "gpt2");
    let here = kiln_models::source::open_folder(&folder).unwrap();
    let weight = "h.1.attn.c_attn.weight";
    assert_eq!(
        loaded.params.param(weight).unwrap(),
        here.params.param(weight).unwrap()
    );

    let error = open_hub(&hub, &HubId::parse("someone/else").unwrap()).unwrap_err();
    assert!(
        matches!(error, ModelError::Hub(HubError::NotFound { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains("someone/else"), "{error}");
}

#[test]
fn shards_and_an_older_tokenizer_are_found() {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#.to_vec();
    let folder = fetch(
        files(&[
            ("config.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index.clone()),
            ("m-1.safetensors", safetensors("a")),
            ("m-2.safetensors", safetensors("b")),
            ("vocab.json", b"{}".to_vec()),
            ("merges.txt", b"".to_vec()),
        ]),
        REPO,
    )
    .unwrap();
    assert_eq!(folder.file_name().unwrap(), COMMIT);
    let error = message(
        files(&[
            ("config.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index),
            ("m-1.safetensors", safetensors("a")),
        ]),
        REPO,
    );
    assert_eq!(
        error,
        "model `someone/tiny` has no file m-2.safetensors, which its index names; \
         tell its owner, or try another revision"
    );
}

#[test]
fn what_was_fetched_before_serves_without_a_hub() {
    let cache = TempDir::new().unwrap();
    let fake = FakeHub::start(single());
    let id = HubId::parse(REPO).unwrap();
    let folder = hub(&fake, &cache).fetch(&id).unwrap();
    let options = |offline| HubOptions {
        // Nobody listens on port 9 of this machine.
        endpoint: Some("http://127.0.0.1:9".into()),
        cache: Some(cache.path().to_owned()),
        token: None,
        retries: Some(0),
        offline: Some(offline),
    };
    assert_eq!(
        Hub::new(options(false)).unwrap().fetch(&id).unwrap(),
        folder
    );
    assert_eq!(Hub::new(options(true)).unwrap().fetch(&id).unwrap(), folder);

    // That a model has no tokenizer is known from when it was fetched.
    let bare_cache = TempDir::new().unwrap();
    let mut bare = single();
    bare.files.remove("tokenizer.json");
    let fake = FakeHub::start(bare);
    let folder = hub(&fake, &bare_cache).fetch(&id).unwrap();
    for offline in [false, true] {
        let options = HubOptions {
            cache: Some(bare_cache.path().to_owned()),
            ..options(offline)
        };
        assert_eq!(Hub::new(options).unwrap().fetch(&id).unwrap(), folder);
    }

    let other = HubId::parse("someone/else").unwrap();
    assert_eq!(
        Hub::new(options(true))
            .unwrap()
            .fetch(&other)
            .unwrap_err()
            .to_string(),
        "model `someone/else` is not in the cache, and HF_HUB_OFFLINE forbids fetching it; unset that to fetch it"
    );
    let unreachable = Hub::new(options(false))
        .unwrap()
        .fetch(&other)
        .unwrap_err()
        .to_string();
    assert!(
        unreachable.starts_with("cannot reach http://127.0.0.1:9 to fetch config.json of `someone/else`: Connection refused")
            && unreachable.ends_with("or give the path of a folder that has the model"),
        "{unreachable}"
    );
}

/// Two shards with their index.
fn sharded() -> Content {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    files(&[
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("m-1.safetensors", safetensors("a")),
        ("m-2.safetensors", safetensors("b")),
        ("tokenizer.json", b"{}".to_vec()),
    ])
}

/// What a fetch gives when the cache has `content` but for the files `without`,
/// and no notes of what the hub does not have, like that of another tool.
fn fetch_again(content: Content, without: &[&str], offline: bool) -> Result<(), String> {
    let cache = TempDir::new().unwrap();
    let fake = FakeHub::start(content);
    let id = HubId::parse(REPO).unwrap();
    let folder = hub(&fake, &cache).fetch(&id).unwrap();
    for file in without {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    let model = cache.path().join("models--someone--tiny");
    // It may have been complete, so that there are no notes.
    let _ = std::fs::remove_dir_all(model.join(".no_exist"));
    let unreachable = Hub::new(HubOptions {
        endpoint: Some("http://127.0.0.1:9".into()),
        cache: Some(cache.path().to_owned()),
        token: None,
        retries: Some(0),
        offline: Some(offline),
    });
    match unreachable.unwrap().fetch(&id) {
        Ok(found) => {
            assert_eq!(found, folder);
            Ok(())
        }
        Err(error) => Err(error
            .to_string()
            .replace(&folder.display().to_string(), "FOLDER")),
    }
}

#[test]
fn what_the_cache_lacks_is_named_offline() {
    let lacks = |file: &str| {
        Err(format!(
            "the cache has only part of model `someone/tiny` but not its {file}, and HF_HUB_OFFLINE forbids \
             fetching that; unset it to fetch the rest"
        ))
    };
    assert_eq!(
        fetch_again(single(), &["model.safetensors", "tokenizer.json"], true),
        lacks("model.safetensors")
    );
    assert_eq!(
        fetch_again(sharded(), &["m-2.safetensors"], true),
        lacks("m-2.safetensors")
    );
    assert_eq!(
        fetch_again(single(), &["tokenizer.json"], true).unwrap_err(),
        "the cache has model `someone/tiny` without a tokenizer, and the hub cannot be asked for one \
         (HF_HUB_OFFLINE forbids it); fetch it while the hub can be reached, or give the \
         folder FOLDER instead of the id to run without one"
    );
}

#[test]
fn the_cache_of_another_tool_serves_without_a_hub() {
    for offline in [false, true] {
        assert_eq!(fetch_again(sharded(), &[], offline), Ok(()));
        assert_eq!(fetch_again(single(), &[], offline), Ok(()));
        let older = |config: &str| {
            let mut older = single();
            older.files.remove("tokenizer.json");
            older.files.insert("vocab.json", b"{}".to_vec());
            older.files.insert("merges.txt", Vec::new());
            older.files.insert("config.json", config.into());
            fetch_again(older, &[], offline)
        };
        // They are a tokenizer of GPT-2's family, and of no other.
        assert_eq!(older(r#"{"model_type": "gpt2"}"#), Ok(()));
        let error = older(r#"{"model_type": "qwen2"}"#).unwrap_err();
        assert!(error.contains("without a tokenizer"), "{error}");
    }
    let error = fetch_again(sharded(), &["tokenizer.json"], false).unwrap_err();
    assert!(
        error.contains("(http://127.0.0.1:9 cannot be reached: "),
        "{error}"
    );
    let error = fetch_again(sharded(), &["m-1.safetensors"], false).unwrap_err();
    assert!(
        error.starts_with(
            "cannot reach http://127.0.0.1:9 to fetch m-1.safetensors of `someone/tiny`: "
        ),
        "{error}"
    );
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let expected = "HUB has no model `no/such`; check the spelling, and if the model is private, \
                    set HF_TOKEN to a token that may read it";
    assert_eq!(message(single(), "no/such"), expected);
    let mut hidden = single();
    hidden.others.insert(
        "no/such",
        Answer {
            status: "401 Unauthorized",
            headers: "x-error-code: RepoNotFound\r\n",
        },
    );
    assert_eq!(message(hidden, "no/such"), expected);
}

#[test]
fn a_gated_model_says_where_to_accept_its_terms() {
    let mut gated = single();
    gated.others.insert(
        "a/gated",
        Answer {
            status: "403 Forbidden",
            headers: "x-error-code: GatedRepo\r\n",
        },
    );
    assert_eq!(
        message(gated, "a/gated"),
        "model `a/gated` is gated: accept its terms at HUB/a/gated and set HF_TOKEN to a token of that account"
    );
}

#[test]
fn a_revision_that_is_not_there_is_named() {
    assert_eq!(
        message(single(), "someone/tiny@v9"),
        "model `someone/tiny` has no revision `v9`; see HUB/someone/tiny/tree/main"
    );
}

#[test]
fn a_repository_without_a_model_says_what_is_missing() {
    assert_eq!(
        message(files(&[("README.md", vec![])]), REPO),
        "model `someone/tiny` has no config.json, so it is none that kiln reads; see HUB/someone/tiny"
    );
    assert_eq!(
        message(
            files(&[
                ("config.json", b"{}".to_vec()),
                ("pytorch_model.bin", vec![])
            ]),
            REPO
        ),
        "model `someone/tiny` has neither model.safetensors nor model.safetensors.index.json; look at \
         HUB/someone/tiny for a version with safetensors, or convert it with transformers' \
         `save_pretrained(folder, safe_serialization=True)`"
    );
}

#[test]
fn too_many_requests_and_a_broken_server_say_so() {
    let mut content = single();
    content.others.insert(
        "a/busy",
        Answer {
            status: "429 Too Many Requests",
            headers: "retry-after: 7\r\n",
        },
    );
    content.others.insert(
        "a/down",
        Answer {
            status: "503 Service Unavailable",
            headers: "",
        },
    );
    let (fake, cache) = (FakeHub::start(content), TempDir::new().unwrap());
    let hub = hub(&fake, &cache);
    let message = |id| {
        hub.fetch(&HubId::parse(id).unwrap())
            .unwrap_err()
            .to_string()
            .replace(&fake.endpoint, "HUB")
    };
    assert_eq!(
        message("a/busy"),
        "HUB refuses further requests for `a/busy` for now; try again in 7 s, or set HF_TOKEN for a higher limit"
    );
    assert_eq!(
        message("a/down"),
        "cannot reach HUB to fetch config.json of `a/down`: it answered 503 Service Unavailable; check the \
         network (and HF_ENDPOINT), or give the path of a folder that has the model"
    );
}

#[test]
fn an_error_page_does_not_stay_in_the_cache() {
    let cache = TempDir::new().unwrap();
    let mut content = single();
    content.spoiled = Some("model.safetensors");
    let spoiled = FakeHub::start(content);
    let id = HubId::parse(REPO).unwrap();
    assert_eq!(
        hub(&spoiled, &cache).fetch(&id).unwrap_err().to_string(),
        format!(
            "model.safetensors of `someone/tiny` came with 26 bytes where {} were announced; try again",
            safetensors("a").len()
        )
    );
    let sound = FakeHub::start(single());
    let folder = hub(&sound, &cache).fetch(&id).unwrap();
    assert!(Checkpoint::open(folder).is_ok());
}

/// The environment belongs to the whole process, so that this is tested in a
/// process of its own: this very test, started again.
#[test]
fn the_usual_environment_variables_are_honoured() {
    const ROLE: &str = "KILN_HUB_TEST_CHILD";
    if std::env::var_os(ROLE).is_some() {
        let folder = Hub::from_env()
            .unwrap()
            .fetch(&HubId::parse(REPO).unwrap())
            .unwrap();
        assert!(
            folder.starts_with(std::env::var("HF_HOME").unwrap()),
            "{}",
            folder.display()
        );
        return;
    }
    let (fake, home) = (FakeHub::start(single()), TempDir::new().unwrap());
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_usual_environment_variables_are_honoured",
            "--nocapture",
        ])
        .env(ROLE, "1")
        .env("HF_ENDPOINT", &fake.endpoint)
        .env("HF_HOME", home.path())
        .env("HF_TOKEN", "hf_from_the_environment")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN")
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(
        fake.requests()
            .iter()
            .any(|r| r == "token hf_from_the_environment"),
        "{:?}",
        fake.requests()
    );
}
