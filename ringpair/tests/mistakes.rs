//! A person's mistakes: one line that names the thing and what would be right; status 2 for a wrong call, 1 for
//! anything else.

mod program;
use program::{Folder, Served, fail};
use rustix::process::Signal;

#[test]
fn the_socket_of_a_live_server_is_an_error_and_the_server_lives_on() {
    let folder = Folder::new();
    let socket = folder.text("socket");
    let served = Served::start(&["--socket", &socket, "null:1G"]);
    let error = fail(1, &["serve", "--socket", &socket, "null:1G"]);
    assert!(error.contains(&socket) && error.contains("in use"), "{error}");
    assert_eq!(served.end(Signal::TERM), Some(0));
}

#[test]
fn a_socket_that_cannot_be_made_is_named() {
    let folder = Folder::new();
    let error = fail(1, &["serve", "--socket", &folder.text("no/folder/socket"), "null:1G"]);
    assert!(error.contains("no/folder/socket"), "{error}");
    let file = folder.file("file", 512);
    let error = fail(1, &["serve", "--socket", &file, "null:1G"]);
    assert!(error.contains("not a socket"), "{error}");
    assert!(folder.path("file").exists(), "what is not a socket is left alone");
}

#[test]
fn a_configuration_file_names_its_line() {
    let folder = Folder::new();
    let config = folder.write("r.toml", "[[controller]]\nsocket = '/x'\ndisk = ['null:1G']\n");
    let error = fail(2, &["serve", "--config", &config]);
    assert!(error.contains("r.toml:3:") && error.contains("`disk`") && error.contains("`disks`"), "{error}");
    let error = fail(1, &["serve", "--config", &folder.text("none.toml")]);
    assert!(error.contains("none.toml"), "{error}");
    let error = fail(2, &["serve", "--config", &config, "--socket", "/x", "null:1G"]);
    assert!(error.contains("--config"), "{error}");
}
