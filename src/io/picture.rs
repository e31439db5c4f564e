//! Pictures of screens: PNG from what a hypervisor gives.

use std::io::Cursor;

/// The first bytes of every PNG.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The largest width and height of a screen, in pixels.
const LARGEST: usize = 16_384;

/// Returns a picture as PNG: QEMU gives PPM with three bytes for each pixel (the format P6 of
/// netpbm), or PNG already.
///
/// # Errors
/// It is neither, or incomplete. The text says why.
pub(crate) fn as_png(picture: &[u8]) -> Result<Vec<u8>, String> {
    if picture.starts_with(PNG) {
        return Ok(picture.to_vec());
    }
    let (width, height, pixels) =
        read_ppm(picture).ok_or("the picture of the screen is in an unknown format")?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(Cursor::new(&mut file), width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer
        .write_image_data(pixels)
        .and_then(|()| writer.finish())
        .map_err(|error| error.to_string())?;
    Ok(file)
}

/// The width, the height and the pixels of a PPM; `None` if it is not a whole one.
fn read_ppm(picture: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut rest = picture.strip_prefix(b"P6")?;
    let mut numbers = [0; 3];
    for number in &mut numbers {
        let start = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let (before, from) = rest.split_at(start);
        let length = from.iter().position(|byte| !byte.is_ascii_digit())?;
        if before.is_empty() || !(1..=5).contains(&length) {
            return None;
        }
        let (digits, after) = from.split_at(length);
        *number = std::str::from_utf8(digits).ok()?.parse::<usize>().ok()?;
        rest = after;
    }
    let [width, height, most] = numbers;
    let is_size = |size: usize| (1..=LARGEST).contains(&size);
    // One whitespace comes before the pixels.
    let pixels = rest.get(1..)?.get(..width.checked_mul(height)?.checked_mul(3)?)?;
    let is_ppm = is_size(width) && is_size(height) && most == 255;
    is_ppm.then_some((u32::try_from(width).ok()?, u32::try_from(height).ok()?, pixels))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ppm_becomes_the_same_picture_as_png() {
        let pixels: Vec<u8> = (0..2 * 3 * 3).collect();
        let ppm = [b"P6\n2 3\n255\n", pixels.as_slice()].concat();
        let file = as_png(&ppm).expect("a picture");
        let mut reader = png::Decoder::new(Cursor::new(&file)).read_info().expect("a PNG");
        assert_eq!((reader.info().width, reader.info().height), (2, 3));
        let mut read = vec![0; 18];
        reader.next_frame(&mut read).expect("whole");
        assert_eq!(read, pixels);
        assert_eq!(as_png(&file).expect("it stays"), file);
    }

    #[test]
    fn other_pictures_are_refused() {
        for wrong in [
            &b""[..],
            b"P6",
            b"P6\n1 1\n255\n\x01\x02",
            b"P5\n1 1\n255\n\x01\x02\x03",
            b"P6\n0 1\n255\n\x01\x02\x03",
            b"P6\n1 1\n65535\n\x01\x02\x03\x04\x05\x06",
            b"P6\n99999 99999\n255\n\x01",
            b"P6\n-1 1\n255\n\x01\x02\x03",
        ] {
            assert!(as_png(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_picture_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = as_png(&[b"P6 ", bytes.as_slice()].concat());
        }
    }
}
