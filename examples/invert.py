"""What does a layer keep of an image? Noise is moved until the layer answers as it does to the image."""

import matplotlib.pyplot as plt

from reptrans import Plan, build, invert, load_dataset, train_classifier
from reptrans.inputs import picture_grid

LAYERS = ("relu1", "relu2", "relu3")


def main(epochs: int = 4, limit: int | None = 200, steps: int = 300) -> None:
    dataset = load_dataset("shapes", limit=limit)
    net = build("cnn3_w16", **dataset.form)
    train_classifier(net, dataset, Plan(epochs=epochs, lr=0.05))
    as_they_are = dataset.loader("test", 6, mean=(0.0,) * 3, std=(1.0,) * 3)  # in [0, 1], not normalised
    images = next(iter(as_they_are)).images
    pictures = {"image": images}
    for layer in LAYERS:
        found = invert(net, layer, images, dataset.mean, dataset.std, steps=steps)
        pictures[layer] = found.images
        error, likeness = found.rows["relative_error"].mean(), found.rows["psnr"].mean()
        print(f"{layer}: relative error {error:.3f}, PSNR {likeness:.1f} dB")
    picture_grid(pictures)
    plt.savefig("invert.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
