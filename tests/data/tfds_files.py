"""Writes small TFDS datasets, as `tfds build` leaves them."""

import pathlib


def write(folder, features, splits, shards=1):
  """Rows into a folder DATA_DIR/NAME[/CONFIG]/VERSION.

  Args:
    folder: see above.
    features: of a tfds.features.FeaturesDict.
    splits: rows by split.
    shards: files of each split.
  """
  import tensorflow as tf
  import tensorflow_datasets as tfds

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict(features)
  infos = []
  for split, rows in splits.items():
    bounds = [len(rows) * i // shards for i in range(shards + 1)]
    lengths = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    left = iter(rows)
    for i, length in enumerate(lengths):
      name = f'it-{split}.tfrecord-{i:05d}-of-{shards:05d}'
      with tf.io.TFRecordWriter(str(folder / name)) as file:
        for _ in range(length):
          row = features.encode_example(next(left))
          file.write(features.serialize_example(row))
    template = tfds.core.ShardedFileTemplate(
      dataset_name='it',
      data_dir=folder,
      filetype_suffix='tfrecord',
      split=split,
    )
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=0,
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=str(folder), features=features, split_infos=infos
  )
