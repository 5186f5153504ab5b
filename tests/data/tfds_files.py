"""Writes small TFDS datasets in the form that `tfds build` stores."""

import pathlib


def write(folder, features, splits, shards=1):
  """Writes a dataset.

  Args:
    folder: DATA_DIR/NAME[/CONFIG]/VERSION.
    features: fields of a tfds.features.FeaturesDict.
    splits: split -> rows.
    shards: number of files per split.
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
    remaining = iter(rows)
    for i, length in enumerate(lengths):
      name = f'it-{split}.tfrecord-{i:05d}-of-{shards:05d}'
      with tf.io.TFRecordWriter(str(folder / name)) as file:
        for _ in range(length):
          row = features.encode_example(next(remaining))
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
