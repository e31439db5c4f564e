//! Buckets with object lock, which keep deleted objects as older versions.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::server::Server;
use super::stage::Stage;

/// The keys of all versions in the locked bucket, also of deleted objects. The server must not
/// check signatures.
fn versions(server: &Server) -> BTreeSet<String> {
    let address = server.fact("ENDPOINT").trim_start_matches("http://");
    let request = format!(
        "GET /{}?versions&max-keys=1000 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        server.fact("LOCKED_BUCKET"),
        address
    );
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("<IsTruncated>false</IsTruncated>"), "{answer}");
    let versions = answer.split("<Version>").skip(1);
    let key = |version: &str| Some(version.split_once("<Key>")?.1.split_once("</Key>")?.0.to_owned());
    versions.filter_map(key).collect()
}

/// Backups, prunes and collections work as in other buckets. What they delete stays in the bucket
/// as an older version, as long as its retention lasts.
pub fn bucket_keeps_what_a_collection_deletes(server: &Server) {
    let location = server.location_in(server.fact("LOCKED_BUCKET"), "kvm");
    server.init(&location);
    let mut stage = Stage::new(&location);
    stage.make_points(server, 4);
    server.document(&["verify", "-r", &location, "--all", "--deep"]);
    let before = versions(server);
    server.document(&["prune", "vm1", "-r", &location, "--keep-last", "1"]);
    let collect = ["repository", "collect", &location, "--grace", "0s"];
    server.set_hours_ahead(3);
    server.document(&collect);
    server.set_hours_ahead(6);
    let second = server.document(&collect);
    let deleted = second["collection"]["deleted"]["packs"].as_u64();
    assert!(deleted > Some(0), "{second}");
    let after = versions(server);
    let lost: Vec<&String> = before.difference(&after).collect();
    assert!(lost.is_empty(), "{lost:?}");
    stage.assert_restored(server, &location, &stage.points[3..]);
    stage.make_points(server, 1);
    server.document(&["verify", "-r", &location, "--all", "--deep"]);
    stage.assert_restored(server, &location, &stage.points[3..]);
}
