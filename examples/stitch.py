"""Join the front of one network to the end of another: where do two networks speak the same language?"""

from reptrans import Plan, build, evaluate, load_dataset, stitch, train_classifier

LAYERS = ("bn1", "bn2", "bn3")


def main(epochs: int = 10, limit: int | None = None) -> None:
    dataset = load_dataset("digits", limit=limit)
    networks = [build("cnn3_w16", **dataset.form, seed=seed) for seed in (0, 1)]
    for net in networks:
        train_classifier(net, dataset, Plan(epochs=epochs, lr=0.05))
        print(f"a network by itself: {evaluate(net, dataset.loader('test'))['accuracy']:.3f}")
    for layer in LAYERS:
        _, scores = stitch(networks[0], networks[1], layer, dataset)
        print(f"stitched at {layer}: {scores['accuracy'].item():.3f} (linear CKA {scores['cka'].item():.3f})")


if __name__ == "__main__":
    main()
