"""Make one network of two: the mean of their weights, before and after their units are brought into one order."""

from reptrans import Plan, aligned, build, evaluate, load_dataset, train_classifier
from reptrans.merging import interpolated, reestimated


def main(epochs: int = 10, limit: int | None = None) -> None:
    dataset = load_dataset("digits", limit=limit)
    test = dataset.loader("test")
    networks = [build("cnn3_w32", **dataset.form, seed=seed) for seed in (0, 1)]
    for net in networks:
        train_classifier(net, dataset, Plan(epochs=epochs, lr=0.05))
        print(f"a network by itself: {evaluate(net, test)['accuracy']:.3f}")
    a, b = (net.eval() for net in networks)
    images = next(iter(dataset.loader("train", 500))).images
    for name, other in (("as they are", b), ("aligned", aligned(a, b, images, "activations"))):
        merged = reestimated(interpolated(a, other), dataset.loader("train"))  # batch norm sees the mean of the weights
        print(f"merged {name}: {evaluate(merged, test)['accuracy']:.3f}")


if __name__ == "__main__":
    main()
