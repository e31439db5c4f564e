//! Edits of an XML text that keep all other bytes.
//!
//! roxmltree finds the byte ranges, and the new text is spliced in. This keeps unknown elements,
//! namespaces, comments, CDATA and the order of attributes, which no XML writer guarantees.

use std::ops::Range;

use roxmltree::{Attribute, Node};

use super::bad;
use crate::host::Result;

/// Collects edits of a text and applies them together.
pub(super) struct Splice<'x> {
    xml: &'x str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'x> Splice<'x> {
    /// Begins without edits.
    pub(super) fn of(xml: &'x str) -> Splice<'x> {
        Splice {
            xml,
            edits: Vec::new(),
        }
    }

    /// The text of an element.
    pub(super) fn source(&self, node: Node) -> &'x str {
        &self.xml[node.range()]
    }

    pub(super) fn replace(&mut self, range: Range<usize>, text: String) {
        if self.xml[range.clone()] != text {
            self.edits.push((range, text));
        }
    }

    pub(super) fn insert(&mut self, at: usize, text: String) {
        self.edits.push((at..at, text));
    }

    /// Removes an element and the whitespace before it, so that no empty line is left.
    pub(super) fn remove(&mut self, node: Node) {
        let range = node.range();
        let start = self.xml[..range.start].trim_end().len();
        self.edits.push((start..range.end, String::new()));
    }

    pub(super) fn remove_attribute(&mut self, attribute: Attribute) {
        let range = attribute.range();
        let start = self.xml[..range.start].trim_end().len();
        self.edits.push((start..range.end, String::new()));
    }

    pub(super) fn set_value(&mut self, attribute: Attribute, value: &str) {
        if attribute.value() != value {
            self.replace(attribute.range_value(), escape(value));
        }
    }

    pub(super) fn set_text(&mut self, node: Node, value: &str) {
        let inner = self.inner(node);
        let whole = node.range();
        if inner.end == whole.end {
            // `<name/>`: replace the slash by an end tag.
            let slash = self.xml[..whole.end - 1].trim_end().len() - 1;
            let name = &self.xml[whole.start + 1..name_end(node)];
            self.replace(slash..whole.end, format!(">{}</{name}>", escape(value)));
        } else {
            self.replace(inner, escape(value));
        }
    }

    /// Returns the range between an element's start and end tags.
    ///
    /// For an element without an end tag, the range is empty and at the element's end.
    pub(super) fn inner(&self, node: Node) -> Range<usize> {
        let whole = node.range();
        let attributes_end = node.attributes().map(|attribute| attribute.range().end).max();
        let tag = attributes_end.unwrap_or_else(|| name_end(node));
        // After the last attribute only whitespace, a slash and `>` can follow. roxmltree does not
        // count namespace declarations, whose values may contain `>`, but no element edited here
        // has one.
        let start = self.xml[tag..whole.end]
            .find('>')
            .map_or(whole.end, |at| tag + at + 1);
        if start == whole.end {
            return start..start;
        }
        let end = self.xml[start..whole.end]
            .rfind("</")
            .map_or(whole.end, |at| start + at);
        start..end
    }

    pub(super) fn apply(mut self) -> Result<String> {
        self.edits.sort_by_key(|(range, _)| (range.start, range.end));
        let mut edited = String::with_capacity(self.xml.len() + 256);
        let mut done = 0;
        for (range, text) in &self.edits {
            if range.start < done {
                return Err(bad("domain XML", "two edits overlap"));
            }
            edited.push_str(&self.xml[done..range.start]);
            edited.push_str(text);
            done = range.end;
        }
        edited.push_str(&self.xml[done..]);
        Ok(edited)
    }
}

/// Returns the position after the name in an element's start tag.
pub(super) fn name_end(node: Node) -> usize {
    let range = node.range();
    let source = &node.document().input_text()[range.clone()];
    let end = source.find(|c: char| c.is_whitespace() || c == '/' || c == '>');
    end.map_or(range.end, |at| range.start + at)
}

/// Escapes a value for text and for attributes with either kind of quotes.
pub(super) fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", u32::from(character))),
            other => escaped.push(other),
        }
    }
    escaped
}
