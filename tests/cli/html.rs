//! `kiln ir --html`

use super::*;

fn out(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("html");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// The page that `kiln ir ... --html` writes.
fn page(name: &str, model: &[&str]) -> String {
    let file = out(name);
    let args = ["ir"].iter().chain(model).copied();
    let ran = kiln(args.chain(["--html", file.to_str().unwrap()]));
    assert_eq!(ran.ok(), "");
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn a_page_is_written() {
    let whole = page("demo.html", &["demo"]);
    assert!(whole.starts_with("<!doctype html>") && whole.trim_end().ends_with("</html>"));
    for name in [
        "\"forward\"",
        "\"step\"",
        "\"fuse_attention\"",
        "\"software\"",
        "\"h.4.attn\"",
    ] {
        assert!(whole.contains(name), "{name}");
    }
    let step = page("step.html", &["demo", "--entry", "step"]);
    assert!(step.contains("\"step\"") && !step.contains("\"forward\""));
}

#[test]
fn a_compiled_model_has_the_page_of_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("demo.kiln");
    kiln(["compile", "demo", "-o", folder.to_str().unwrap()]).ok();
    let compiled = page("compiled.html", &[folder.to_str().unwrap()]);
    let checkpoint = page("checkpoint.html", &["demo"]);
    assert_eq!(compiled.replace("demo.kiln", "demo"), checkpoint);
}

#[test]
fn a_page_shows_the_kernels_of_a_type_of_weights() {
    let page = page("q8.html", &["demo", "--entry", "step", "--dtype", "q8"]);
    assert!(page.contains("\"coop\"") && page.contains("q8"));
}

#[test]
fn a_page_goes_with_nothing_that_prints() {
    let file = out("not-written.html");
    let message = kiln(["ir", "demo", "--diff", "--html", file.to_str().unwrap()]).fails(2);
    assert!(
        message.contains("--html") && message.contains("--diff"),
        "{message}"
    );
    let nowhere = out("no-such-folder").join("page.html");
    let message = kiln(["ir", "demo", "--html", nowhere.to_str().unwrap()]).fails(1);
    assert!(message.contains("page.html"), "{message}");
}

/// Presses everything on the page, in Chromium.
#[test]
#[ignore = "needs `chromium`, whose path CHROMIUM may give"]
fn the_page_works_in_a_browser() {
    let page = page("exercised.html", &["demo"]);
    let end = page.rfind("</script>").unwrap();
    let exercised = format!(
        "{}\n{}{}",
        &page[..end],
        include_str!("exercise.js"),
        &page[end..]
    );
    let file = out("exercised.html");
    std::fs::write(&file, exercised).unwrap();
    let profile = tempfile::tempdir().unwrap();
    let browser = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let browsed = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // What glides to its place would be measured on its way.
            "--force-prefers-reduced-motion",
        ])
        .args([
            "--window-size=1600,1000",
            "--virtual-time-budget=600000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let document = String::from_utf8_lossy(&browsed.stdout);
    let (_, title) = document.split_once("<title>").expect("a document");
    assert_eq!(title.split_once("</title>").unwrap().0, "no faults");
}
