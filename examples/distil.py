"""Teach a small network by a larger one, on a folder of images: its labels alone, its answers, or its features?

    python examples/distil.py pictures

where pictures/train/CLASS and pictures/test/CLASS hold the images.
"""

import sys
from copy import deepcopy

from reptrans import Plan, build, distill, evaluate, load_dataset, train_classifier


def main(folder: str, image_size: int = 32, epochs: int = 20) -> None:
    dataset = load_dataset(f"folder:{folder}", image_size=image_size)
    test, plan = dataset.loader("test"), Plan(epochs=epochs, lr=0.05)
    teacher, start = (build(f"cnn3_w{width}", **dataset.form, seed=width) for width in (32, 4))
    train_classifier(teacher, dataset, plan, batch_size=32)
    print(f"teacher: {evaluate(teacher, test)['accuracy']:.3f}")
    loader = dataset.loader("train", 32, shuffle=True)
    for method in ("plain", "kd", "sp"):  # reptrans.METHODS has the others
        student, _ = distill(deepcopy(start), teacher, method, loader, plan)
        print(f"student by {method}: {evaluate(student, test)['accuracy']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
