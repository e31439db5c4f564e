//! From libvirt's description of a server's image to the one of QEMU's block layer (`BlockdevOptions` in QEMU's
//! `qapi/block-core.json`), for what can be opened without libvirt's help.

use serde_json::{Value, json};

use crate::model::storage::{Network, Server};

/// The description of an image for QEMU.
///
/// # Errors
/// Why it can only be read while the domain runs.
pub fn node(network: &Network) -> Result<Value, String> {
    let only_running = |why: String| {
        Err(format!(
            "{} cannot be opened while the domain is shut off, because {why}: start the domain",
            network.text()
        ))
    };
    if !network.needs.is_empty() {
        return only_running(format!(
            "it needs settings of libvirt's ({})",
            network.needs.join(", ")
        ));
    }
    let name = network.name.as_str();
    match (network.protocol.as_str(), network.hosts.as_slice()) {
        ("nbd", [server]) => match socket(server, 10809) {
            Some(server) => Ok(json!({"driver": "nbd", "server": server, "export": name})),
            None => only_running("its server is reached in an unknown way".to_owned()),
        },
        (protocol @ ("http" | "https"), [Server::Tcp { host, port }]) => {
            let host = bracketed(host);
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            let query = network
                .query
                .as_ref()
                .map_or_else(String::new, |query| format!("?{query}"));
            let path = name.trim_start_matches('/');
            Ok(json!({"driver": protocol, "url": format!("{protocol}://{host}{port}/{path}{query}")}))
        }
        ("iscsi", [Server::Tcp { host, port }]) => {
            let (target, lun) = name.rsplit_once('/').unwrap_or((name, "0"));
            match lun.parse::<u32>() {
                Ok(lun) => Ok(json!({
                    "driver": "iscsi", "transport": "tcp", "target": target, "lun": lun,
                    "portal": format!("{}:{}", bracketed(host), port.unwrap_or(3260)),
                })),
                Err(_) => only_running(format!("'{lun}' is no number of a LUN")),
            }
        }
        ("rbd", servers) => rbd(name, servers).map_or_else(
            || only_running("its name or servers are not such as QEMU takes".to_owned()),
            Ok,
        ),
        (_, [] | [_, _, ..]) => only_running("it does not have exactly one server".to_owned()),
        (protocol, _) => only_running(format!("the protocol {protocol} is not supported then")),
    }
}

fn rbd(name: &str, servers: &[Server]) -> Option<Value> {
    let parts: Vec<&str> = name.split('/').collect();
    let mut node = match parts.as_slice() {
        [pool, image] => json!({"driver": "rbd", "pool": pool, "image": image}),
        [pool, namespace, image] => {
            json!({"driver": "rbd", "pool": pool, "namespace": namespace, "image": image})
        }
        _ => return None,
    };
    let address = |server: &Server| match server {
        Server::Tcp { host, port } => Some(json!({"host": host, "port": port.unwrap_or(6789).to_string()})),
        _ => None,
    };
    let servers = servers.iter().map(address).collect::<Option<Vec<_>>>()?;
    if !servers.is_empty() {
        node["server"] = Value::Array(servers);
    }
    Some(node)
}

fn socket(server: &Server, usual: u16) -> Option<Value> {
    match server {
        Server::Unix(path) => Some(json!({"type": "unix", "path": path.to_str()?})),
        Server::Tcp { host, port } => Some(json!({
            "type": "inet", "host": host, "port": port.unwrap_or(usual).to_string(),
        })),
        Server::Other(_) => None,
    }
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
                "server": [{"host": "h", "port": "6789"}, {"host": "h", "port": "3300"}],
            }))
        );
    }

    #[test]
    fn servers_that_need_libvirt_are_refused() {
        let mut secret = network("rbd", "p/i", vec![tcp(None)]);
        secret.needs = vec!["auth".into()];
        let why = node(&secret).expect_err("it needs a secret");
        assert!(why.contains("auth") && why.contains("start the domain"), "{why}");
        for (protocol, name, hosts) in [
            ("gluster", "v/i", vec![tcp(None)]),
            ("nbd", "e", vec![]),
            ("nbd", "e", vec![Server::Other("rdma".into())]),
            ("iscsi", "iqn/x", vec![tcp(None)]),
            ("rbd", "i", vec![]),
        ] {
            node(&network(protocol, name, hosts)).expect_err(protocol);
        }
    }
}
