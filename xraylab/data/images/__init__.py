"""From a file to its pixels: PNG, JPEG, TIFF, DICOM, NumPy, TFRecord."""
