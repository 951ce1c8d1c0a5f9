"""Raw ratings of single persons to mean opinion scores, as the papers and ITU-R BT.500 do it."""
