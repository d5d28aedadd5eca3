//! A root file system's archive as an image of one layer: `docker import`.

use std::io::Write as _;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::PIECES;
use super::stream::{ChannelReader, pump};
use crate::config::ImageConfig;
use crate::error::Error;
use crate::image::Image;
use crate::store::{Derivation, Store, blocking, joined, layout};

/// Bytes copied at once.
const PIECE: usize = 256 << 10;

/// Makes an image of an archive, plain or compressed (gzip, zstd, bzip2, xz). The layer's limits bound what it may unpack to.
pub(crate) async fn import<R>(
    store: &Store,
    archive: R,
    config: ImageConfig,
) -> Result<Image, Error>
where
    R: AsyncRead + Send + Unpin + 'static,
{
    let (sender, receiver) = mpsc::channel(PIECES);
    let mut writer = blocking({
        let store = store.clone();
        move || store.layer_writer()
    })
    .await?;
    let limit = store.limits().max_stream_bytes;
    let path = store.root();
    let unpacker = store.unpacker().clone();
    let unpack = tokio::task::spawn_blocking(move || {
        let copied = unpacker.plain(ChannelReader::new(receiver), |stream| {
            let mut piece = vec![0; PIECE];
            let mut sum: u64 = 0;
            loop {
                let read = stream.read(&mut piece).map_err(|e| Error::ArchiveRead(e.into()))?;
                if read == 0 {
                    break;
                }
                sum += read as u64;
                if sum > limit {
                    let reason = format!("it unpacks to more than {limit} bytes");
                    return Err(Error::Archive { reason });
                }
                writer
                    .write_all(&piece[..read])
                    .map_err(|error| layout::full("write", &path, sum, error))?;
            }
            if sum == 0 {
                return Err(Error::Archive { reason: "it is empty".to_owned() });
            }
            Ok(())
        });
        copied.map_err(super::not_unpacked)?.map(|()| writer)
    });
    let read = pump(archive, sender).await;
    let unpacked = joined(unpack.await);
    // If the stream broke, the unpacker only saw its end.
    let writer = match (unpacked, read) {
        (_, Err(error)) => return Err(Error::ArchiveRead(error.into())),
        (unpacked, Ok(())) => unpacked?,
    };
    let layer = store.add_layer(writer).await?;
    store.derive(Derivation { base: None, layer: Some(layer), config, step: None }).await
}
