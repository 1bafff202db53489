//! A manifest that arrives in pieces.

use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind},
    manifest::{MAX_MANIFEST, Manifest, ManifestReader, ManifestSummary},
};

/// Reads a manifest's pieces, in order, up to the announced length and never beyond. No piece is kept.
#[derive(Debug)]
pub struct ManifestAssembly {
    summary: ManifestSummary,
    reader: ManifestReader,
    hasher: blake3::Hasher,
    received: u64,
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
        Ok(ManifestAssembly { summary, reader: ManifestReader::default(), hasher: blake3::Hasher::new(), received: 0 })
    }

    /// Takes a piece; the manifest, once it is whole. A piece at offset 0 begins again: the connection before was lost.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a piece out of order or out of bounds, [`Code::BadPackage`] when the whole is not what was
    /// announced.
    pub fn accept_piece(&mut self, header: FrameHeader, piece: &[u8]) -> Result<Option<Manifest>, Failure> {
        let refused = |why: &str| Failure::new(Code::InvalidRequest, format!("a piece of the list of files is not acceptable: {why}"));
        if header.kind != FrameKind::Manifest {
            return Err(refused("it belongs to a chunk"));
        }
        if header.offset == 0 {
            *self = ManifestAssembly::new(self.summary)?;
        }
        if u64::from(header.offset) != self.received {
            return Err(refused("it is out of order"));
        }
        self.received += piece.len() as u64;
        if self.received > self.summary.encoded_len {
            return Err(refused("it is longer than announced"));
        }
        self.hasher.update(piece);
        self.reader.push(piece)?;
        if self.received < self.summary.encoded_len {
            return Ok(None);
        }
        self.finish().map(Some)
    }

    fn finish(&mut self) -> Result<Manifest, Failure> {
        let refused = |why: &str| Failure::new(Code::BadPackage, format!("the list of files is not the one announced: {why}"));
        if self.hasher.finalize() != self.summary.id.0 {
            return Err(refused("its hash differs"));
        }
        let manifest = std::mem::take(&mut self.reader).finish()?;
        if manifest.summarize() != self.summary {
            return Err(refused("its totals differ, or it is not encoded as it should be"));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::manifest::{Chunk, Entry, Hash};

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
        assert_eq!((got.entries.len(), got.encode()), (20, encoded));
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
