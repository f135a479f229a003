//! HTTP/2 as bytes, for clients that do what none should: frames (RFC 9113) and header fields written out (RFC 7541),
//! without a library that would know better.

/// What a connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
/// A kind that does not exist, and has to be ignored.
pub const UNKNOWN: u8 = 0x42;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub const INITIAL_WINDOW: u16 = 4;

/// The length of a frame's header.
const HEADER: usize = 9;

/// The names of errors, by their codes.
const ERRORS: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame of the laboratory is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The preface, and settings that say something, if anything.
pub fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
    let setting = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    let settings: Vec<u8> = settings.iter().flat_map(setting).collect();
    [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()
}

/// A field that is not to be remembered.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A field that is to be remembered. The one remembered last is referred to as [`LATEST`].
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    [&[0x40][..], &text(name), &text(value)].concat()
}

/// The field that was remembered last: number 62.
pub const LATEST: u8 = 0x80 | 62;

/// A string without compression: its length, with a prefix of 7 bits, and itself.
fn text(text: &str) -> Vec<u8> {
    const PREFIX: usize = 127;
    let mut bytes = vec![];
    if text.len() < PREFIX {
        bytes.push(text.len() as u8);
    } else {
        bytes.push(PREFIX as u8);
        let mut rest = text.len() - PREFIX;
        while rest >= 128 {
            bytes.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The fields of a request.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    [field(":method", method), field(":scheme", "http"), field(":path", path), field(":authority", "lab")].concat()
}

/// A whole head, behind which nothing follows.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET", path))
}

/// A whole head, behind which a body should follow.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", path))
}

/// The stream that a client opens after so many others.
pub fn stream(number: u32) -> u32 {
    2 * number + 1
}

/// A frame that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    pub kind: u8,
    /// What a RST_STREAM or a GOAWAY says.
    pub code: u32,
}

impl Arrived {
    /// "GOAWAY ENHANCE_YOUR_CALM", for frames that tell how an attack fares.
    pub fn describe(self) -> Option<String> {
        let kind = match self.kind {
            HEADERS => return Some("answers".into()),
            RST_STREAM => "RST_STREAM",
            GOAWAY => "GOAWAY",
            _ => return None,
        };
        let code = ERRORS.get(self.code as usize).map_or_else(|| self.code.to_string(), |name| (*name).to_owned());
        Some(format!("{kind} {code}"))
    }
}

/// Takes frames off the beginning of `bytes`, as many as are whole.
pub fn take_frames(bytes: &mut Vec<u8>) -> Vec<Arrived> {
    let mut frames = vec![];
    let mut at = 0;
    while let Some([a, b, c, kind, _, _, _, _, _]) = bytes.get(at..at + HEADER) {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(payload) = bytes.get(at + HEADER..at + HEADER + length) else { break };
        let code = match *kind {
            RST_STREAM => payload.first_chunk(),
            GOAWAY => payload.get(4..).and_then(<[u8]>::first_chunk),
            _ => None,
        };
        frames.push(Arrived { kind: *kind, code: code.map_or(0, |code| u32::from_be_bytes(*code)) });
        at += HEADER + length;
    }
    bytes.drain(..at);
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_whatever_pieces_they_come_in() {
        let goaway = frame(GOAWAY, 0, 0, &[[0, 0, 0, 7], [0, 0, 0, 11]].concat());
        let bytes =
            [get(1, "/"), frame(PING, ACK, 0, &[0; 8]), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), goaway].concat();
        let whole = take_frames(&mut bytes.clone());
        let described: Vec<_> = whole.iter().filter_map(|frame| frame.describe()).collect();
        assert_eq!(described, ["answers", "RST_STREAM CANCEL", "GOAWAY ENHANCE_YOUR_CALM"]);
        for cut in 0..bytes.len() {
            let mut buffer = bytes[..cut].to_vec();
            let mut found = take_frames(&mut buffer);
            buffer.extend_from_slice(&bytes[cut..]);
            found.append(&mut take_frames(&mut buffer));
            assert_eq!((found, buffer), (whole.clone(), vec![]), "{cut}");
        }
    }

    #[test]
    fn a_long_string_has_a_long_length() {
        for (length, prefix) in [(0, vec![0]), (126, vec![126]), (127, vec![127, 0]), (4000, vec![127, 161, 30])] {
            let bytes = text(&"x".repeat(length));
            assert_eq!(bytes[..bytes.len() - length], prefix, "{length}");
        }
    }
}
