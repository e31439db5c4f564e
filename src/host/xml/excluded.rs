//! Reads which disks the `<metadata>` of a domain excludes from backups.

use roxmltree::Node;

use super::children;

/// The namespace of vmsnap's element. An incompatible version would get a new namespace.
pub(crate) const NAMESPACE: &str = "urn:vmsnap:domain:1";

/// How many marks are read at most; no domain has this many disks.
const MOST: usize = 1024;

/// Lists the targets of `<exclude disk='…'/>` in `<backup xmlns='urn:vmsnap:domain:1'>`, each once.
///
/// The disks need not exist. `virsh metadata` sets the namespace only on the outer element, so an
/// `<exclude>` without a namespace counts too.
pub(super) fn excluded_disks(domain: Node) -> Vec<String> {
    let marks = children(domain, "metadata")
        .flat_map(|metadata| metadata.children())
        .filter(|element| element.has_tag_name((NAMESPACE, "backup")))
        .flat_map(|backup| backup.children())
        .filter(|element| element.has_tag_name((NAMESPACE, "exclude")) || is_plain(element, "exclude"));
    let mut targets: Vec<String> = Vec::new();
    for mark in marks.take(MOST) {
        let target = mark.attribute("disk").unwrap_or_default().trim();
        if !targets.iter().any(|known| known == target) {
            targets.push(target.to_owned());
        }
    }
    targets
}

fn is_plain(element: &Node, name: &str) -> bool {
    element.is_element() && element.tag_name().namespace().is_none() && element.tag_name().name() == name
}

#[cfg(test)]
mod tests {
    use super::super::read_domain;

    fn excluded(metadata: &str) -> Vec<String> {
        let xml = format!("<domain><name>x</name>{metadata}</domain>");
        read_domain(&xml).expect("it is well-formed").excluded
    }

    #[test]
    fn both_spellings_of_the_mark_are_read() {
        let ours = "<metadata><vmsnap:backup xmlns:vmsnap='urn:vmsnap:domain:1'><vmsnap:exclude disk='vdb'/>\
                    <vmsnap:exclude disk=' vdc '/></vmsnap:backup></metadata>";
        assert_eq!(excluded(ours), ["vdb", "vdc"]);
        let virsh = "<metadata><other xmlns='urn:x'/><vmsnap:backup xmlns:vmsnap='urn:vmsnap:domain:1'>\
                     <exclude disk='vdb'/><exclude disk='vdb'/></vmsnap:backup></metadata>";
        assert_eq!(excluded(virsh), ["vdb"]);
        let default =
            "<metadata><backup xmlns='urn:vmsnap:domain:1'><exclude disk='vda'/></backup></metadata>";
        assert_eq!(excluded(default), ["vda"]);
    }

    #[test]
    fn other_namespaces_places_and_elements_exclude_nothing() {
        let of = |namespace: &str| {
            format!("<metadata><b:backup xmlns:b='{namespace}'><b:exclude disk='vda'/></b:backup></metadata>")
        };
        let ours = of("urn:vmsnap:domain:1");
        let cases = [
            String::new(),
            "<metadata/>".to_owned(),
            of("urn:vmsnap:domain:2"),
            of("urn:vmsnap:domain:1 "),
            "<metadata><backup><exclude disk='vda'/></backup></metadata>".to_owned(),
            ours.replace("metadata", "devices"),
            ours.replace("<metadata>", "<metadata><x>")
                .replace("</metadata>", "</x></metadata>"),
            ours.replace("b:exclude", "b:include"),
            ours.replace("<b:exclude", "<b:x><b:exclude")
                .replace("</b:backup>", "</b:x></b:backup>"),
            ours.replace(
                "<b:exclude disk='vda'/>",
                "vda<!-- <b:exclude disk='vda'/> --><![CDATA[<b:exclude disk='vda'/>]]>",
            ),
            ours.replace("<b:exclude", "<exclude xmlns='urn:other'"),
        ];
        for case in cases {
            assert_eq!(excluded(&case), [""; 0], "{case}");
        }
    }

    #[test]
    fn odd_targets_are_kept_as_text_and_their_number_is_bounded() {
        let with = |inner: &str| {
            format!("<metadata><backup xmlns='urn:vmsnap:domain:1'>{inner}</backup></metadata>")
        };
        let odd =
            with("<exclude/><exclude disk='../../etc'/><exclude disk='a&#10;b'/><exclude target='vda'/>");
        assert_eq!(excluded(&odd), ["", "../../etc", "a\nb"]);
        let many: String = (0..super::MOST + 10)
            .map(|n| format!("<exclude disk='v{n}'/>"))
            .collect();
        assert_eq!(excluded(&with(&many)).len(), super::MOST);
    }
}
