import pandas as pd


def rows():
    df = pd.DataFrame(
        {"note": [f"patient {i}" for i in range(60)], "label": [float(i % 2) if i % 3 else None for i in range(60)]}
    )
    return df.to_dict("records")
