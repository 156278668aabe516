"""From numbers to pages: reports, model cards, figures, and what dashboards get."""
