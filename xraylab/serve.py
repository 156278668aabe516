"""``python -m xraylab.serve run=<run>``: a page on which a study is predicted and looked at, and the same for programs."""

from __future__ import annotations

import logging

from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import importing, launch
from xraylab.errors import UserError
from xraylab.predict import run_given

log = logging.getLogger(__name__)

USAGE = """
xraylab.serve: serve a finished run to a browser, and to programs.

  python -m xraylab.serve run=outputs/mrnet/<date_time>
  python -m xraylab.serve run=outputs/combine/<date_time> port=8080 point=sensitivity_0.9
  python -m xraylab.serve run=outputs/mura/<date_time> host=0.0.0.0 token=<secret>
  curl -F files=@1130.npy http://127.0.0.1:8000/api/predict

It needs pip install 'xraylab[serve]'. A study is PNG, JPEG, TIFF, .npy or DICOM files, a folder or a zip file of them. Nothing
that is sent is kept or logged, and nothing is fetched from elsewhere. A run is served to this machine alone unless host= says
otherwise; then whoever asks needs the token, and what is sent should go through a proxy with TLS. This is no medical device.
"""


def job(cfg: DictConfig) -> None:
    """Load the run, and answer until Ctrl-C."""
    run = run_given(str(cfg.run))
    _check(cfg)
    with importing():
        from xraylab.explanation.maps import METHODS, require_known
        from xraylab.training.fit import silence_lightning

        try:
            from xraylab.serving.app import LOOPBACK
            from xraylab.serving.served_run import ServedRun
            from xraylab.serving.server import address_of, listening, serve, token_for
            from xraylab.serving.uploads import Limits
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed, which the page needs: pip install 'xraylab[serve]'") from error

    require_known(cfg.method or METHODS[0], [], [])
    silence_lightning()
    opened = listening(str(cfg.host), cfg.port)
    with opened:
        log.info("loading %s", run)
        served = ServedRun(run, cfg.bits, str(cfg.point), cfg.method, cfg.refuse)
        token = token_for(str(cfg.host), cfg.token)
        url = address_of(opened, str(cfg.host))
        if served.synthetic:
            log.warning("SYNTHETIC SAMPLE: the model was trained on drawings; what it says means nothing for patients.")
        log.info("%s says %s. Research only, no medical device.", served.name, ", ".join(served.labels))
        log.info("open %s%s  (Ctrl-C ends it)", url, f"/?token={token}" if token else "")
        if token and str(cfg.host) not in LOOPBACK:
            log.warning("other machines reach it, and what is sent is not encrypted: put a proxy with TLS before it.")
        local = str(cfg.host) in LOOPBACK
        serve(served, opened, Limits(**OmegaConf.to_container(cfg.limits)), token, LOOPBACK if local else None)  # type: ignore[arg-type]
    log.info("ended")


def _check(cfg: DictConfig) -> None:
    from xraylab.data.images.source import check_bits

    check_bits(cfg.bits)
    if not isinstance(cfg.refuse, bool):
        raise UserError(f"refuse={cfg.refuse}: it is true or false.")
    if not (cfg.token is None or (isinstance(cfg.token, str) and cfg.token)):
        raise UserError("token=…: it is text, or null.")
    for key, value in cfg.limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"limits.{key}={value}: it is a number above 0.")
        if key in ("files", "smallest", "waiting") and not isinstance(value, int):
            raise UserError(f"limits.{key}={value}: it is a whole number.")


def main() -> None:
    """The entry point."""
    launch("serve", job, USAGE)


if __name__ == "__main__":
    main()
