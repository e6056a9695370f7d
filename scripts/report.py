"""Write a run's report, or two runs' side by side: one page that needs nothing else.

    python scripts/report.py output/ucm_tiny/caption
    python scripts/report.py output/a/caption output/b/caption --out report.html

The captions are those that training or evaluation left in the run's results/.
"""

import sys

from bita.reports.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
