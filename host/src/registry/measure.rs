//! Path 2, step B: how large a module is, before anything compiles it.

use sha2::{Digest as _, Sha256};

use crate::payload::hex;

/// Deepest nesting of components. The compiler's parser has no limit of its own, and what is not
/// looked into is not counted.
pub(super) const MAX_DEPTH: usize = 100;

/// Components are nested deeper than [`MAX_DEPTH`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooDeep;

/// SHA-256 of a file, in lower-case hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// How many functions all core modules of a component define together; `None` when the bytes
/// are not well formed, which the compiler will tell better.
///
/// # Errors
/// Components are nested too deep to be counted.
pub(super) fn functions(component: &[u8]) -> Result<Option<u64>, TooDeep> {
    const CORE_MODULE: u8 = 1;
    const COMPONENT: u8 = 4;
    const FUNCTIONS: u8 = 3;
    let mut count = 0u64;
    let Some(whole) = Part::of(component) else { return Ok(None) };
    let mut open = vec![whole];
    while let Some(part) = open.last_mut() {
        let (id, content) = match part.sections.next() {
            Some(Some(section)) => section,
            Some(None) => return Ok(None),
            None => {
                open.pop();
                continue;
            }
        };
        match (part.is_core, id) {
            (true, FUNCTIONS) => {
                let Some((functions, _)) = leb128(content) else { return Ok(None) };
                count = count.saturating_add(functions as u64);
            }
            (false, CORE_MODULE | COMPONENT) => {
                if open.len() > MAX_DEPTH {
                    return Err(TooDeep);
                }
                let Some(inner) = Part::of(content) else { return Ok(None) };
                open.push(inner);
            }
            _ => {}
        }
    }
    Ok(Some(count))
}

/// A core module or a component that is being looked through.
struct Part<'a> {
    is_core: bool,
    sections: Sections<'a>,
}

impl<'a> Part<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        // Bytes 6 and 7 tell the layer: 0 is a core module, 1 a component.
        let is_core = bytes.get(6..8)? == [0, 0];
        Some(Self { is_core, sections: Sections::of(bytes)? })
    }
}

/// The version that the component's metadata tells: the custom section `version` of the
/// WebAssembly tool conventions, at the component's top level.
pub(super) fn version(component: &[u8]) -> Option<String> {
    const CUSTOM: u8 = 0;
    for section in Sections::of(component)? {
        let (id, section) = section?;
        if id != CUSTOM {
            continue;
        }
        let (name_size, named) = leb128(section)?;
        let (name, content) = named.split_at_checked(name_size)?;
        if name == b"version" {
            let text = std::str::from_utf8(content).ok()?;
            return (text.len() <= 256).then(|| text.to_owned());
        }
    }
    None
}

/// The sections of a module or component, each with its id; ends with `None` where the bytes are
/// not well formed.
struct Sections<'a>(&'a [u8]);

impl<'a> Sections<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(b"\0asm").then(|| bytes.get(8..).map(Self)).flatten()
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&id, after) = self.0.split_first()?;
        let section = leb128(after).and_then(|(size, after)| after.split_at_checked(size));
        let Some((section, rest)) = section else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = rest;
        Some(Some((id, section)))
    }
}

/// An unsigned number of at most 32 bits in LEB128, and what follows it.
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_its_custom_section() {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.extend([0, 5, 4, b'n', b'a', b'm', b'e']);
        bytes.extend([0, 13, 7]);
        bytes.extend(b"version1.2.3");
        assert_eq!(version(&bytes).as_deref(), Some("1.2.3"));
        assert_eq!(version(&bytes[..bytes.len() - 1]), None);
        assert_eq!(version(b"\0asm"), None);
    }

    #[test]
    fn functions_are_counted_over_all_modules_of_nested_components() {
        let core = b"\0asm\x01\0\0\0\x03\x04\x03\0\0\0".to_vec(); // three functions of type 0
        let within = |id: u8, bytes: &[u8]| {
            let mut section = vec![id, u8::try_from(bytes.len()).unwrap()];
            section.extend(bytes);
            section
        };
        let mut inner = b"\0asm\x0d\0\x01\0".to_vec();
        inner.extend(within(1, &core));
        let mut outer = b"\0asm\x0d\0\x01\0".to_vec();
        outer.extend(within(1, &core));
        outer.extend(within(4, &inner));
        assert_eq!(functions(&core), Ok(Some(3)));
        assert_eq!(functions(&outer), Ok(Some(6)));
        assert_eq!(functions(&outer[..outer.len() - 1]), Ok(None));
        assert_eq!(functions(b"nothing"), Ok(None));
    }

    #[test]
    fn what_is_nested_too_deep_to_be_counted_is_told() {
        let nested = |depth: usize| {
            let core = b"\0asm\x01\0\0\0\x03\x02\x01\0".to_vec(); // one function of type 0
            (0..depth).fold(core, |inner, level| {
                let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
                bytes.push(if level == 0 { 1 } else { 4 });
                let low = u8::try_from(inner.len() % 128).unwrap();
                bytes.extend([low | 0x80, u8::try_from(inner.len() / 128).unwrap()]);
                bytes.extend(inner);
                bytes
            })
        };
        assert_eq!(functions(&nested(MAX_DEPTH)), Ok(Some(1)));
        assert_eq!(functions(&nested(MAX_DEPTH + 1)), Err(TooDeep));
    }
}
