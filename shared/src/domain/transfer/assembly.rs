//! A manifest that arrives in pieces.

use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind},
    manifest::{Hash, MAX_MANIFEST, Manifest, ManifestSummary},
};

/// A manifest that is what its summary said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Its bytes, whose hash names the package.
    pub encoded: Vec<u8>,
}

/// Collects a manifest's pieces, in order, up to the announced length and never beyond.
#[derive(Debug)]
pub struct ManifestAssembly {
    summary: ManifestSummary,
    bytes: Vec<u8>,
}

impl ManifestAssembly {
    /// Waits for the manifest that was announced.
    ///
    /// # Errors
    /// [`Code::TooLarge`] beyond [`MAX_MANIFEST`]; [`Code::BadPackage`] for an empty one.
    pub fn new(summary: ManifestSummary) -> Result<Self, Failure> {
        if summary.encoded_len > MAX_MANIFEST {
            let message = "the package has too many files or bytes for one transfer; split it into several packages";
            return Err(Failure::new(Code::TooLarge, message));
        }
        if summary.encoded_len == 0 {
            return Err(Failure::new(Code::BadPackage, "the list of files is empty"));
        }
        Ok(ManifestAssembly { summary, bytes: Vec::new() })
    }

    /// Takes a piece; the manifest, once it is whole. A piece at offset 0 begins again: the connection before was lost.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a piece out of order or out of bounds, [`Code::BadPackage`] when the whole is not what was
    /// announced.
    pub fn accept_piece(&mut self, header: FrameHeader, piece: &[u8]) -> Result<Option<WholeManifest>, Failure> {
        let refused = |why: &str| Failure::new(Code::InvalidRequest, format!("a piece of the list of files is not acceptable: {why}"));
        if header.kind != FrameKind::Manifest {
            return Err(refused("it belongs to a chunk"));
        }
        if header.offset == 0 {
            self.bytes.clear();
        }
        if u64::from(header.offset) != self.bytes.len() as u64 {
            return Err(refused("it is out of order"));
        }
        if (self.bytes.len() + piece.len()) as u64 > self.summary.encoded_len {
            return Err(refused("it is longer than announced"));
        }
        if self.bytes.capacity() == 0 {
            // At once, so that it is not moved as it grows; memory is taken only for what comes.
            self.bytes.reserve_exact(self.summary.encoded_len as usize);
        }
        self.bytes.extend_from_slice(piece);
        if (self.bytes.len() as u64) < self.summary.encoded_len {
            return Ok(None);
        }
        let encoded = std::mem::take(&mut self.bytes);
        self.finish(encoded).map(Some)
    }

    fn finish(&self, encoded: Vec<u8>) -> Result<WholeManifest, Failure> {
        let refused = |why: &str| Failure::new(Code::BadPackage, format!("the list of files is not the one announced: {why}"));
        if Hash::of(&encoded) != self.summary.id {
            return Err(refused("its hash differs"));
        }
        let manifest = Manifest::decode(&encoded)?;
        if manifest.summary(&encoded) != self.summary {
            return Err(refused("its totals differ"));
        }
        Ok(WholeManifest { manifest, encoded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::manifest::{Chunk, Entry};

    fn whole() -> (ManifestSummary, Vec<u8>) {
        let entries = (0..20)
            .map(|n| {
                let chunks = vec![Chunk { hash: Hash::of(&[n]), len: 5 }];
                Entry { path: format!("f{n:02}").parse().unwrap(), size: 5, executable: false, chunks }
            })
            .collect();
        let manifest = Manifest::new(entries).unwrap();
        let encoded = manifest.encode();
        (manifest.summary(&encoded), encoded)
    }

    fn piece(offset: usize) -> FrameHeader {
        FrameHeader { transfer: 1, kind: FrameKind::Manifest, offset: offset as u32 }
    }

    #[test]
    fn pieces_become_the_manifest() {
        let (summary, encoded) = whole();
        let mut assembly = ManifestAssembly::new(summary).unwrap();
        assert_eq!(assembly.accept_piece(piece(0), &encoded[..100]).unwrap(), None);
        // The connection was lost: the sender begins again.
        assert_eq!(assembly.accept_piece(piece(0), &encoded[..300]).unwrap(), None);
        let got = assembly.accept_piece(piece(300), &encoded[300..]).unwrap().unwrap();
        assert_eq!((got.manifest.entries.len(), got.encoded), (20, encoded));
    }

    #[test]
    fn what_was_not_announced_is_refused() {
        let (summary, encoded) = whole();
        let fails = |summary: ManifestSummary, offset: usize, bytes: &[u8]| {
            ManifestAssembly::new(summary).and_then(|mut assembly| assembly.accept_piece(piece(offset), bytes)).unwrap_err().code
        };
        assert_eq!(fails(summary, 0, &[&encoded[..], b"x"].concat()), Code::InvalidRequest);
        assert_eq!(fails(summary, 9, &encoded), Code::InvalidRequest);
        assert_eq!(fails(ManifestSummary { id: Hash([7; 32]), ..summary }, 0, &encoded), Code::BadPackage);
        assert_eq!(fails(ManifestSummary { bytes: 7, ..summary }, 0, &encoded), Code::BadPackage);
        assert_eq!(fails(ManifestSummary { encoded_len: MAX_MANIFEST + 1, ..summary }, 0, &encoded), Code::TooLarge);
        let chunk = FrameHeader { kind: FrameKind::Chunk(0), ..piece(0) };
        assert_eq!(ManifestAssembly::new(summary).unwrap().accept_piece(chunk, &encoded).unwrap_err().code, Code::InvalidRequest);
    }
}
