"""Natural-scene statistics without a trained network: NIQE, IL-NIQE and BRISQUE, computed in double precision."""
