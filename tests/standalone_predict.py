import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["mnet"])
how, side = about["preprocess"], about["preprocess"]["image_size"]
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
size = [int(how["resize"] * length / min(image.size)) for length in image.size]
left, top = (round((length - side) / 2) for length in size)
image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
pixels = np.asarray(image.crop((left, top, left + side, top + side))) / 255
images = ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)
logits = session.run(None, {session.get_inputs()[0].name: images})[0][0]
shares = np.exp(logits - logits.max())
print(json.dumps(dict(zip(about["class_names"], (shares / shares.sum()).tolist(), strict=True))))
