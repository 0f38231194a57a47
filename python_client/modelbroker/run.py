"""`python -m modelbroker.run app.py`: an unmodified program's weights come from the broker.

`python -m modelbroker.run --help` lists the options; docs/sharing.md says what is shared.
"""

from ._sharing.launcher import main

if __name__ == "__main__":
    main()
