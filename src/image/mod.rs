//! The writer and its reader: images in qcow2 and raw.
