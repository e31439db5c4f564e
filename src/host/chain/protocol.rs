//! Converts libvirt's description of an image on a server to QEMU's.
//!
//! The result is `BlockdevOptions` in QEMU's `qapi/block-core.json`. Only servers that need no
//! settings from libvirt are supported. The result must equal libvirt's own, because another URL or
//! name is another disk. The tests compare with the output of `virsh domxml-to-native qemu-argv` of
//! libvirt 9.0.0.

use serde_json::{Value, json};

use crate::model::storage::{Network, Server};

/// The reason for a server that is reached neither over TCP nor, for NBD, over a unix socket.
const TRANSPORT: &str = "vmsnap does not support the transport to the image's server";

/// Returns QEMU's description of the storage.
///
/// # Errors
/// The reason why the image can only be read while the domain runs.
pub fn node(network: &Network) -> Result<Value, String> {
    let only_running = |why: String| {
        Err(format!(
            "only the domain's own QEMU can open {}, because {why}: back the disk up while the domain runs",
            network.text()
        ))
    };
    if !network.needs.is_empty() {
        return only_running(format!(
            "the image needs settings that only libvirt can apply ({})",
            network.needs.join(", ")
        ));
    }
    let name = network.name.as_str();
    match (network.protocol.as_str(), network.hosts.as_slice()) {
        ("nbd", [server]) => match socket(server, 10809) {
            Some(server) => Ok(json!({"driver": "nbd", "server": server, "export": name})),
            None => only_running(TRANSPORT.to_owned()),
        },
        (protocol @ ("http" | "https"), [Server::Tcp { host, port }]) => {
            Ok(json!({"driver": protocol, "url": url(network, host, *port)}))
        }
        ("iscsi", [Server::Tcp { host, port }]) => {
            // libvirt splits at the first slash.
            let (target, lun) = name.split_once('/').unwrap_or((name, "0"));
            match lun.parse::<u32>() {
                Ok(lun) => Ok(json!({
                    "driver": "iscsi", "transport": "tcp", "target": target, "lun": lun,
                    "portal": format!("{}:{}", bracketed(host), usable(*port).unwrap_or(3260)),
                })),
                Err(_) => only_running(format!("'{lun}' is not a LUN number")),
            }
        }
        ("rbd", servers) => rbd(name, servers).or_else(|why| only_running(why.to_owned())),
        (_, [] | [_, _, ..]) => {
            only_running("the domain's definition does not name exactly one server for the image".to_owned())
        }
        ("http" | "https" | "iscsi", _) => only_running(TRANSPORT.to_owned()),
        (protocol, _) => only_running(format!("vmsnap does not support the protocol {protocol}")),
    }
}

/// Builds the same URL as libvirt 9.0 (`qemuBlockStorageSourceGetURI`).
///
/// The port is explicit, the name is percent-encoded like a path in libxml2, and the query is
/// copied unchanged. A `%20` in a name is three characters of that name, and leading slashes are
/// kept.
fn url(network: &Network, host: &str, port: Option<u16>) -> String {
    let Network { protocol, name, .. } = network;
    let port = usable(port).unwrap_or(if protocol == "https" { 443 } else { 80 });
    let slash = match name.is_empty() || name.starts_with('/') {
        true => "",
        false => "/",
    };
    let path = encoded(name);
    let query = network.query.as_ref();
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{protocol}://{}:{port}{slash}{path}{query}", bracketed(host))
}

/// Percent-encodes a path as libvirt does (`xmlSaveUri` of libxml2).
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.!~*'();@&=+$,".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Describes an RBD image.
///
/// libvirt has no default port here: with port 0, librados tries the ports of both of its
/// protocols.
fn rbd(name: &str, servers: &[Server]) -> Result<Value, &'static str> {
    let parts: Vec<&str> = name.split('/').collect();
    let mut node = match parts.as_slice() {
        [pool, image] if !pool.is_empty() && !image.is_empty() => {
            json!({"driver": "rbd", "pool": pool, "image": image})
        }
        // libvirt 9.0 reads `a/b/c` as image `b/c` in pool `a`, newer versions as image `c` in
        // namespace `b`.
        [_, _, _] => {
            return Err(
                "the image's name has three parts, which older and newer libvirt interpret differently",
            );
        }
        _ => return Err("the image's name is not POOL/IMAGE"),
    };
    let address = |server: &Server| match server {
        Server::Tcp { host, port } => Ok(json!({"host": host, "port": port.unwrap_or(0).to_string()})),
        _ => Err(TRANSPORT),
    };
    let servers = servers.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    if !servers.is_empty() {
        node["server"] = Value::Array(servers);
    }
    Ok(node)
}

fn socket(server: &Server, usual: u16) -> Option<Value> {
    match server {
        Server::Unix(path) => Some(json!({"type": "unix", "path": path.to_str()?})),
        Server::Tcp { host, port } => Some(json!({
            "type": "inet", "host": host, "port": usable(*port).unwrap_or(usual).to_string(),
        })),
        Server::Other(_) => None,
    }
}

/// Treats port 0 as no port, as libvirt does.
fn usable(port: Option<u16>) -> Option<u16> {
    port.filter(|port| *port != 0)
}

fn bracketed(host: &str) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(protocol: &str, name: &str, hosts: Vec<Server>) -> Network {
        Network {
            protocol: protocol.into(),
            name: name.into(),
            hosts,
            query: None,
            needs: vec![],
        }
    }

    fn tcp(port: Option<u16>) -> Server {
        Server::Tcp {
            host: "h".into(),
            port,
        }
    }

    #[test]
    fn servers_are_described_as_qemu_names_them() {
        let unix = network("nbd", "e", vec![Server::Unix("/run/s".into())]);
        assert_eq!(
            node(&unix),
            Ok(json!({"driver": "nbd", "server": {"type": "unix", "path": "/run/s"}, "export": "e"}))
        );
        assert_eq!(
            node(&network("nbd", "", vec![tcp(None)])).expect("it can be read")["server"],
            json!({"type": "inet", "host": "h", "port": "10809"})
        );
        let mut web = network("https", "/a.img", vec![tcp(Some(8443))]);
        web.query = Some("v=1".into());
        assert_eq!(
            node(&web),
            Ok(json!({"driver": "https", "url": "https://h:8443/a.img?v=1"}))
        );
        assert_eq!(
            node(&network("iscsi", "iqn.2026-11.org.example:t/2", vec![tcp(None)])),
            Ok(json!({
                "driver": "iscsi", "transport": "tcp", "portal": "h:3260",
                "target": "iqn.2026-11.org.example:t", "lun": 2,
            }))
        );
        assert_eq!(
            node(&network("rbd", "p/i", vec![tcp(None), tcp(Some(3300))])),
            Ok(json!({
                "driver": "rbd", "pool": "p", "image": "i",
                "server": [{"host": "h", "port": "0"}, {"host": "h", "port": "3300"}],
            }))
        );
    }

    #[test]
    fn urls_are_those_that_libvirt_builds() {
        let url = |protocol: &str, name: &str, host: Server, query: Option<&str>| {
            let mut web = network(protocol, name, vec![host]);
            web.query = query.map(str::to_owned);
            node(&web).expect("it can be read")["url"].clone()
        };
        for (name, expected) in [
            ("/a%20b.img", "http://h:80/a%2520b.img"),
            ("/a b#c?d.img", "http://h:80/a%20b%23c%3Fd.img"),
            ("//x.img", "http://h:80//x.img"),
            ("x.img", "http://h:80/x.img"),
            ("", "http://h:80"),
            ("/", "http://h:80/"),
            (
                "/\u{fc}&;:@+,=~!$*()\"[]|\\^_-.{}<'",
                "http://h:80/%C3%BC&;%3A@+,=~!$*()%22%5B%5D%7C%5C%5E_-.%7B%7D%3C'",
            ),
        ] {
            assert_eq!(url("http", name, tcp(None), None), expected);
        }
        for (query, expected) in [
            ("v=1&a=b c#%20?", "http://h:80/x?v=1&a=b c#%20?"),
            ("", "http://h:80/x?"),
            ("?a", "http://h:80/x??a"),
        ] {
            assert_eq!(url("http", "/x", tcp(None), Some(query)), expected);
        }
        let host = |port| Server::Tcp {
            host: "::1".into(),
            port,
        };
        assert_eq!(url("https", "/x", host(Some(8443)), None), "https://[::1]:8443/x");
        assert_eq!(url("https", "/x", host(None), None), "https://[::1]:443/x");
    }

    #[test]
    fn servers_that_need_libvirt_are_refused() {
        let mut secret = network("rbd", "p/i", vec![tcp(None)]);
        secret.needs = vec!["auth".into()];
        let why = node(&secret).expect_err("it needs a secret");
        assert!(why.contains("auth") && why.contains("domain's own QEMU"), "{why}");
        for (protocol, name, hosts) in [
            ("gluster", "v/i", vec![tcp(None)]),
            ("nbd", "e", vec![]),
            ("nbd", "e", vec![Server::Other("rdma".into())]),
            ("iscsi", "iqn/x", vec![tcp(None)]),
            ("iscsi", "iqn/a/1", vec![tcp(None)]),
            ("rbd", "i", vec![]),
            ("rbd", "/i", vec![]),
            ("rbd", "p/", vec![]),
            ("rbd", "p/n/i", vec![]),
        ] {
            node(&network(protocol, name, hosts)).expect_err(protocol);
        }
    }
}
